"""How often a comparison is wrong: ``python benchmarks/compare_aa.py`` (with ``--record``, eight minutes).

* A/A: of 1,000 comparisons of 7 unchanged runs with 7 others, drawn from those recorded, at most 7 % may find a
  difference at p < 0.05.
* A/B: of 10 comparisons of a server with one that burns 25 % more CPU per echo, by 7 pairs of neighbouring runs, at
  least 9 must find it, on CPU per echo.

It exits with 1 if one of the two does not hold. ``--record`` measures pairs of short runs in alternating order, and
replaces ``results/compare-aa.json``, which ``anyecho report`` reads, too.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from anyecho._version import __version__
from anyecho.backends import run
from anyecho.measure.bench import run_bench
from anyecho.measure.compare import Comparison, Group, compare
from anyecho.measure.control import BenchControl
from anyecho.measure.histogram import Histogram
from anyecho.measure.machine import MachineState, library_versions
from anyecho.measure.options import BenchOptions
from anyecho.measure.result import Document, RunResult
from echoes import check_complete
from process import Running, running
from run import say

RECORDED = Path(__file__).parent / "results" / "compare-aa.json"
BURNING = Path(__file__).parent / "peers" / "burning.py"

PAIRS, REPETITIONS, COMPARISONS = 70, 7, 1000
#: CPU per echo of the changed server, and the wanted shares of verdicts.
MORE_CPU, FALSE_ALARMS, FOUND = 1.25, 0.07, 0.9
#: Pairs of runs from which the time to burn is calculated, twice.
_CALIBRATION = 10
_UNCHANGED, _CHANGED = "unchanged", "25 % more CPU"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="measure anew, and replace the file")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"runs of each server to record ({PAIRS})")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run to record (1)")
    parser.add_argument("--comparisons", type=int, default=COMPARISONS, help=f"to draw ({COMPARISONS})")
    parser.add_argument("--file", type=Path, default=RECORDED, help="the recorded runs")
    arguments = parser.parse_args()
    if arguments.record:
        arguments.file.write_text(record(arguments.pairs, arguments.seconds).to_json())
    return evaluate(Document.from_json(arguments.file.read_bytes(), str(arguments.file)), arguments.comparisons)


def record(pairs: int, seconds: float) -> Document:
    """Measure pairs of runs of the unchanged and the changed server, in the reverse order in every second pair."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    state = MachineState.now()
    measure = partial(measure_pair, seconds=seconds, core=cores[0])
    burnt = calibrated(measure, min(pairs, _CALIBRATION))
    runs: list[RunResult] = []
    for number in range(pairs):
        say(f"pair {number + 1}/{pairs}")
        for name, result in zip((_UNCHANGED, _CHANGED), measure(burnt, number), strict=True):
            # Without what no comparison reads: the file is in the repository.
            empty = Histogram.from_samples(())
            latency = result.latency if name == _UNCHANGED else empty
            trimmed = replace(result, latency=latency, uncorrected=empty, per_second=(), notes=())
            runs.append(replace(trimmed, load=replace(result.load, address=name), round=number))

    os.sched_setaffinity(0, set(cores))
    return Document(
        version=__version__,
        command=("python", "benchmarks/compare_aa.py", "--record"),
        machine=state.until_now(),
        versions=library_versions(),
        runs=tuple(runs),
    )


def calibrated(measure: Callable[[int, int], tuple[RunResult, RunResult]], count: int) -> int:
    """Return the nanoseconds to burn per echo, so that it costs 25 % more; a wrapper takes a part of them."""
    plain = statistics.median(_cost(run) for number in range(count) for run in measure(0, number)) * 1e9
    wanted = (MORE_CPU - 1) * plain
    ratios = [_cost(changed) / _cost(one) for one, changed in (measure(round(wanted), n) for n in range(2 * count))]
    burnt = max(wanted + (MORE_CPU - statistics.median(ratios)) * plain, 1.0)
    say(f"burning {burnt:.0f} ns per echo, where {wanted:.0f} ns are 25 %")
    return round(burnt)


def measure_pair(burnt: int, number: int, *, seconds: float, core: int) -> tuple[RunResult, RunResult]:
    """Measure an unchanged server and one that burns that many nanoseconds per echo, one right after the other.

    Both are started before, so that less than half a second is between the runs. In every second pair, the changed
    server is first.
    """
    serve = ("serve", "tcp://127.0.0.1:0", "--engine", "events")
    words = [(sys.executable, str(BURNING), str(each), *serve) for each in (0, burnt)]
    with running(words[0], core=core) as unchanged, running(words[1], core=core) as changed:
        if number % 2:
            last = _measure(changed, seconds)
            return _measure(unchanged, seconds), last

        return _measure(unchanged, seconds), _measure(changed, seconds)


def _measure(server: Running, seconds: float) -> RunResult:
    control = BenchControl()
    control.server_cpu = server.processor_ns
    options = BenchOptions(duration=seconds, warmup=0.1)
    job = partial(run_bench, server.address, options, backend="asyncio", control=control, exclusive=True)
    # A shared machine can stall for so long that no message is sent in a run.
    while True:
        result = run(job, backend="asyncio")
        check_complete(result)
        if result.counts.sent:
            return result


def evaluate(document: Document, comparisons: int) -> int:
    unchanged, changed = (
        sorted((run for run in document.runs if run.load.address == name), key=lambda run: run.round or 0)
        for name in (_UNCHANGED, _CHANGED)
    )
    if len(unchanged) < 2 * REPETITIONS:
        sys.exit(f"{len(unchanged)} runs of each server are too few: {2 * REPETITIONS} are needed")

    machine = document.machine
    costs = [statistics.median(map(_cost, runs)) * 1e6 for runs in (unchanged, changed)]
    where = f"{machine.processor}, {machine.cores} cores"
    print(f"{len(unchanged)} runs of {unchanged[0].load.duration:g} s of each server, on {where},")
    print(f"load average {machine.load_before[0]:.1f} before and {machine.load_after[0]:.1f} after")
    print(f"CPU per echo: {costs[0]:.2f} us unchanged, {costs[1]:.2f} us changed, x {costs[1] / costs[0]:.2f}\n")

    any_metric, cpu_only, by_pairs = false_alarms(unchanged, comparisons)
    holds = max(any_metric, cpu_only, by_pairs) <= FALSE_ALARMS
    print(f"A/A, {comparisons} comparisons of {REPETITIONS} runs with {REPETITIONS}, at most {FALSE_ALARMS:.0%}:")
    print(f"  a difference in any of p50, p99, rate and CPU  {any_metric:6.1%}")
    print(f"  a difference in CPU per echo                   {cpu_only:6.1%}")
    print(f"  a difference in CPU per echo, by pairs         {by_pairs:6.1%}  {_verdict(holds)}")

    found = differences(unchanged, changed)
    share = sum(found) / len(found)
    print(f"A/B, CPU per echo, {REPETITIONS} pairs of neighbouring runs, at least {FOUND:.0%} found:")
    print(f"  {sum(found)} of {len(found)} comparisons {_verdict(share >= FOUND)}")
    return 0 if holds and share >= FOUND else 1


def false_alarms(runs: Sequence[RunResult], comparisons: int) -> tuple[float, float, float]:
    """Return the shares of comparisons of unchanged runs that find a difference.

    In any metric; in CPU per echo; and there with the test for pairs.
    """
    chance = random.Random(1)
    counts = [0, 0, 0]
    for _ in range(comparisons):
        drawn = chance.sample(runs, 2 * REPETITIONS)
        one, other = drawn[:REPETITIONS], drawn[REPETITIONS:]
        free = [group([replace(run, round=None) for run in each]) for each in (one, other)]
        paired = [group([replace(run, round=n) for n, run in enumerate(each)]) for each in (one, other)]
        by_pairs = compare(paired[0], paired[1], ["cpu"], interleaved=True)
        for index, each in enumerate((compare(free[0], free[1]), compare(free[0], free[1], ["cpu"]), by_pairs)):
            counts[index] += _is_different(each)

    return counts[0] / comparisons, counts[1] / comparisons, counts[2] / comparisons


def differences(unchanged: Sequence[RunResult], changed: Sequence[RunResult]) -> list[bool]:
    """Return whether each comparison of 7 consecutive pairs finds more CPU per echo in the changed runs."""
    starts = range(0, len(unchanged) - REPETITIONS + 1, REPETITIONS)
    parts = [slice(start, start + REPETITIONS) for start in starts]
    comparisons = [
        compare(group(unchanged[part]), group(changed[part]), ["cpu"], interleaved=True) for part in parts
    ]
    return [each.paired and each.rows[0].verdict == "higher" for each in comparisons]


def group(runs: Sequence[RunResult]) -> Group:
    return Group(name=runs[0].load.address, load=runs[0].load, backend="asyncio", runs=tuple(runs))


def _is_different(comparison: Comparison) -> bool:
    return any(row.different for row in comparison.rows)


def _cost(run: RunResult) -> float:
    assert run.server_cpu_per_echo is not None
    return run.server_cpu_per_echo


def _verdict(holds: bool) -> str:
    return "holds" if holds else "MISSED"


if __name__ == "__main__":
    sys.exit(main())
