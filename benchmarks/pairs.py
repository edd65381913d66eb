"""Two servers under the same load, by turns: ``python benchmarks/pairs.py`` (7 minutes).

Both run at once, on the same core, each with connections of its own; while one is measured, the other is idle.
The two halves of a pair are half a second apart. A shared machine changes its speed by a factor of two within
seconds, which both halves of a pair share. Rounds a minute apart do not share it.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, TypeAlias

from echoes import measure_echoes
from paced_load import PacedLoad, compiled
from process import ServerFailed, running
from results import describe_machine
from run import choose, say
from servers import NAMES, find
from table import markdown_table


class Target(NamedTuple):
    server: str
    reference: str
    #: Messages a second in all; None is a closed loop: the next message is sent when the last one is back.
    rate: int | None
    #: CPU per echo, as a multiple of the reference's.
    limit: float
    connections: int = 50
    size: int = 64

    @property
    def load(self) -> str:
        size = f"{self.size // 1024} KiB" if self.size >= 1024 else f"{self.size} B"
        return f"{self.connections} x {size}, {'closed loop' if self.rate is None else f'{self.rate}/s'}"


TARGETS = (
    Target("anyecho-events-asyncio", "asyncio-protocol", 1000, 0.9),
    Target("anyecho-events-asyncio", "asyncio-protocol", 5000, 1.0),
    Target("anyecho-events-uvloop", "uvloop-protocol", 1000, 1.2),
    Target("anyecho-events-uvloop", "uvloop-protocol", 5000, 1.7),
    Target("anyecho-events-trio", "trio-serve-tcp", 1000, 0.9),
    Target("anyecho-events-trio", "trio-serve-tcp", 5000, 0.9),
    *(
        Target(f"anyecho-tasks-{backend}", reference, rate, 1.0)
        for backend, reference in (
            ("asyncio", "asyncio-streams"),
            ("uvloop", "uvloop-streams"),
            ("trio", "trio-serve-tcp"),
        )
        for rate in (1000, 5000)
    ),
    Target("anyecho-events-asyncio", "asyncio-protocol", None, 1.05, connections=10, size=65536),
    Target("anyecho-events-uvloop", "uvloop-protocol", None, 1.15, connections=10, size=65536),
    Target("anyecho-events-asyncio", "c-epoll", None, 1.25, connections=1000),
    Target("anyecho-events-uvloop", "c-epoll", None, 1.25, connections=1000),
)
#: Of the servers; the load runs on the last.
FIRST_CORE = min(os.sched_getaffinity(0))
#: A measurement of one of the two servers: CPU us per echo, and median latency in us.
Measure: TypeAlias = Callable[[], tuple[float, float]]
HEAD = ("server", "load", "limit", "CPU, by pairs", "middle half", "", "CPU us/echo", "p50 us", "p50, by pairs")
CONDITIONS = """\
Medians of {pairs} pairs of {seconds:g} s; the figure of the reference is behind the slash. Machine: {processor},
{cores} cores, {kernel}, Python {python}, {date}, load average {load_average:.2f}.

"""


def main() -> int:
    arguments = parse()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    names = choose(arguments.only, NAMES)
    rows: list[list[str]] = []
    failed = False
    with compiled() as binary, tempfile.TemporaryDirectory(prefix="anyecho-bench-") as folder:
        for target in [each for each in TARGETS if each.server in names and each.load in arguments.loads]:
            say(f"{target.load}  {target.server} and {target.reference}")
            try:
                with ExitStack() as opened:
                    ours, theirs = (
                        start(find(name, Path(folder)).command, target, binary, arguments.seconds, opened)
                        for name in (target.server, target.reference)
                    )
                    rows.append(judge(target, take_turns(ours, theirs, arguments.pairs)))
            except ServerFailed as exc:
                say(f"{target.server} or {target.reference} failed: {exc}")
                failed = True

    settings = {"pairs": arguments.pairs, "seconds": arguments.seconds}
    text = CONDITIONS.format(**settings, **describe_machine()) + markdown_table(HEAD, rows) + "\n"
    sys.stdout.write(text)
    if arguments.output:
        arguments.output.write_text(text)
    return 1 if failed else 0


def start(command: Sequence[str], target: Target, binary: Path, seconds: float, opened: ExitStack) -> Measure:
    """Start a server that `opened` ends, and return what measures it."""
    server = opened.enter_context(running(command, core=FIRST_CORE))
    connections, size, rate = target.connections, target.size, target.rate
    if rate is None:

        def measure_closed_loop() -> tuple[float, float]:
            figures = measure_echoes(server, seconds, "uvloop", connections=connections, size=size)
            return figures["cpu_us_per_echo"], figures["p50_us"]

        return measure_closed_loop

    load = opened.enter_context(PacedLoad(binary, server, connections, size))

    def measure_open_loop() -> tuple[float, float]:
        figures = load.measure(rate, seconds)
        return figures.cpu_us, figures.p50_us

    return measure_open_loop


def take_turns(ours: Measure, theirs: Measure, pairs: int) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Measure both servers, in the reverse order in every second pair: neither is always first."""
    measured = []
    for number in range(pairs):
        if number % 2:
            second = theirs()
            measured.append((ours(), second))
        else:
            measured.append((ours(), theirs()))

    return measured


def judge(target: Target, pairs: list[tuple[tuple[float, float], tuple[float, float]]]) -> list[str]:
    ratios = [ours[0] / theirs[0] for ours, theirs in pairs]
    reached = statistics.median(ratios)
    low, _, high = statistics.quantiles(ratios) if len(ratios) > 1 else ratios * 3

    def both(figure: int) -> str:
        return " / ".join(f"{statistics.median(pair[half][figure] for pair in pairs):.1f}" for half in range(2))

    return [
        *(target.server, target.load, f"<= {target.limit:g} x {target.reference}"),
        *(f"{reached:.2f}", f"{low:.2f}-{high:.2f}", "met" if reached <= target.limit else "**missed**"),
        *(both(0), both(1), f"{statistics.median(ours[1] - theirs[1] for ours, theirs in pairs):+.1f}"),
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=40, help="how often each server is measured (40)")
    parser.add_argument("--seconds", type=float, default=0.25, help="of each measurement (0.25)")
    parser.add_argument("--only", default="", metavar="NAME,...", help="targets of these servers")
    loads = [*dict.fromkeys(each.load for each in TARGETS)]
    parser.add_argument("--loads", nargs="+", choices=loads, default=loads, help="targets of these loads")
    parser.add_argument("--output", type=Path, metavar="FILE", help="save the table here, too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
