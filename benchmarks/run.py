"""Echo servers side by side: ``python benchmarks/run.py`` (with ``--quick``, under two minutes).

Tables on standard output, progress on standard error; with ``--output`` also every value as JSON, the tables as
Markdown, and a plot. ``README.md`` beside this file has the method.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from anyecho.backends import Backend
from echoes import check
from plot import draw
from process import ServerFailed, running
from results import Results
from servers import NAMES, Server, find
from table import render
from targets import TARGETS, judge
from workloads import QUICK, WORKLOADS, Workload

#: The event loop of the load: the one with the lowest latency.
LOAD_BACKEND: Backend = "uvloop" if find_spec("uvloop") else "asyncio"


def main() -> int:
    arguments = parse()
    # 9000 idle connections need as many descriptors, here and in the server, which inherits the limit.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="anyecho-bench-") as folder:
        servers = [find(name, Path(folder)) for name in choose(arguments.only, NAMES)]
        names = choose(arguments.workload, [workload.name for workload in WORKLOADS])
        workloads = [workload for workload in WORKLOADS if workload.name in names]
        results = Results(
            servers=servers,
            settings={
                "rounds": arguments.rounds,
                "seconds": arguments.seconds,
                "workloads": names,
                "load_backend": LOAD_BACKEND,
                "placement": "another" if len(cores) > 1 else "the same, there being only one",
            },
        )
        os.sched_setaffinity(0, {cores[-1]})
        try:
            measure(results, workloads, arguments.rounds, arguments.seconds, core=cores[0])
            status = 1 if results.failures else 0
        except KeyboardInterrupt:
            say("interrupted; this is what there is")
            status = 130
        finally:
            os.sched_setaffinity(0, set(cores))

    report(results, arguments.output)
    return status


def measure(results: Results, workloads: Sequence[Workload], rounds: int, seconds: float, *, core: int) -> None:
    """Measure each server under each workload, in interleaved rounds of alternating order.

    Compared servers are measured within half a minute: the state of a machine changes over longer times.
    """
    for turn in range(rounds):
        for workload in workloads:
            if turn >= workload.most_rounds:
                continue
            for server in results.servers[:: -1 if turn % 2 else 1]:
                if (
                    server.absent
                    or not workload.takes(server.name)
                    or results.has_failed(workload.name, server.name)
                ):
                    continue
                say(f"round {turn + 1}/{rounds}  {workload.name}  {server.name}")
                measure_one(results, workload, server, seconds, core=core)


def measure_one(results: Results, workload: Workload, server: Server, seconds: float, *, core: int) -> None:
    try:
        with running(server.command, core=core) as process:
            check(process, LOAD_BACKEND)
            figures = workload.measure(process, seconds, LOAD_BACKEND)
    except ServerFailed as exc:
        say(f"{server.name} failed: {exc}")
        results.fail(workload.name, server.name, str(exc))
    else:
        results.add(workload.name, server.name, figures)


def report(results: Results, folder: Path | None) -> None:
    verdicts = [judge(target, results) for target in TARGETS]
    text = render(results, verdicts)
    sys.stdout.write(text)
    if folder is None:
        return

    folder.mkdir(parents=True, exist_ok=True)
    results.save(folder / "results.json", verdicts)
    (folder / "table.md").write_text(text)
    if why_not := draw(results, folder / "plot.svg"):
        say(why_not)
    say(f"saved in {folder}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"1 round of 0.2 s of {', '.join(QUICK)}")
    parser.add_argument("--rounds", type=int, help="how often each is measured (7)")
    parser.add_argument("--seconds", type=float, help="of each measurement (0.5)")
    parser.add_argument(
        "--only", default="", metavar="NAME,...", help="these servers; the beginning of a name is enough"
    )
    parser.add_argument(
        "--workload", default="", metavar="NAME,...", help=", ".join(each.name for each in WORKLOADS)
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="save results.json, table.md and plot.svg here")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 7)
    arguments.seconds = arguments.seconds or (0.2 if arguments.quick else 0.5)
    arguments.workload = arguments.workload or (",".join(QUICK) if arguments.quick else "")
    return arguments


def choose(wanted: str, names: Sequence[str]) -> list[str]:
    """Return the names equal to, or beginning with, one of `wanted`; all names if it is empty."""
    chosen: set[str] = set()
    for word in filter(None, wanted.split(",")):
        found = [name for name in names if name == word] or [name for name in names if name.startswith(word)]
        if not found:
            sys.exit(f"no {word}; there are {', '.join(names)}")
        chosen.update(found)

    return [name for name in names if name in chosen or not chosen]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
