"""Echo servers at a fixed message rate: ``python benchmarks/paced.py`` (with ``--quick``, a minute).

An open loop: messages are sent at their due times, even if earlier ones are not back. Most servers are idle most of
the time, so the first rates are low. The server runs on the first core, the load on the last. The load is in C
and does not sleep: a timer of an event loop is late by up to a millisecond.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import NamedTuple, TypeAlias

from paced_load import Figures, PacedLoad, compiled
from process import Running, ServerFailed, running
from results import describe_machine
from run import choose, say
from servers import NAMES, find
from table import markdown_table

#: Messages a second in all, connections, bytes of a message.
RATES = (100, 1000, 5000, 20_000)
CONNECTIONS = (1, 50, 1000)
SIZES = (64, 16 * 1024)
LEFT_OUT = ("socat",)


class Load(NamedTuple):
    rate: int
    connections: int
    size: int

    def __str__(self) -> str:
        size = f"{self.size // 1024} KiB" if self.size >= 1024 else f"{self.size} B"
        return f"{self.rate:,}/s, {self.connections} x {size}"


#: The rounds of each server under each load.
Values: TypeAlias = dict[tuple[Load, str], list[Figures]]


def main() -> int:
    arguments = parse()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    core = min(os.sched_getaffinity(0))
    loads = [
        Load(rate, connections, size)
        for connections, size, rate in product(arguments.connections, arguments.sizes, arguments.rates)
    ]
    values: Values = {}
    failed = False
    with compiled() as binary, tempfile.TemporaryDirectory(prefix="anyecho-bench-") as folder:
        servers = [find(name, Path(folder)) for name in choose(arguments.only, NAMES) if name not in LEFT_OUT]
        present = [server for server in servers if not server.absent]
        for turn in range(arguments.rounds):
            for server in present[:: -1 if turn % 2 else 1]:
                say(f"round {turn + 1}/{arguments.rounds}  {server.name}")
                try:
                    with running(server.command, core=core) as process:
                        for load, figures in measure(process, binary, loads, arguments.seconds):
                            values.setdefault((load, server.name), []).append(figures)
                except ServerFailed as exc:
                    say(f"{server.name} failed: {exc}")
                    failed = True

    text = render(values, loads, [server.name for server in present], arguments)
    sys.stdout.write(text)
    if arguments.output:
        arguments.output.write_text(text)
    return 1 if failed else 0


def measure(server: Running, binary: Path, loads: Sequence[Load], seconds: float) -> Iterator[tuple[Load, Figures]]:
    """Measure each of `loads`; loads of equal connections and size share their connections."""
    for shape, alike in groupby(loads, lambda load: (load.connections, load.size)):
        with PacedLoad(binary, server, *shape) as running_load:
            for load in alike:
                yield load, running_load.measure(load.rate, seconds)


def render(values: Values, loads: Sequence[Load], names: Sequence[str], arguments: argparse.Namespace) -> str:
    settings = {"rounds": arguments.rounds, "seconds": arguments.seconds}
    head = CONDITIONS.format(**settings, **describe_machine())
    parts = [head]
    for load in loads:
        rows = [[name, *cells(rounds)] for name in names if (rounds := values.get((load, name)))]
        parts += [f"## {load}", markdown_table(HEAD, rows)]

    return "\n\n".join(parts) + "\n"


CONDITIONS = """\
Medians of {rounds} interleaved rounds of {seconds:g} s (least-most). Latency counts from the due time; lag is how
late the load itself sent. The server is pinned to one core, the load to another, and every reply is compared. CPU
is user and system time of the server's process. Machine: {processor}, {cores} cores, {kernel}, Python {python},
{date}, load average {load_average:.2f}."""
HEAD = ("server", "CPU us/echo", "p50 us", "p99 us", "lag p99 us", "rate held")


def cells(rounds: Sequence[Figures]) -> Iterator[str]:
    for each in ("cpu_us", "p50_us", "p99_us", "lag_p99_us"):
        yield spread([getattr(figures, each) for figures in rounds])
    yield f"{sum(figures.held for figures in rounds)}/{len(rounds)}"


def spread(figures: Sequence[float], digits: int = 1) -> str:
    return f"{statistics.median(figures):.{digits}f} ({min(figures):.{digits}f}-{max(figures):.{digits}f})"


def parse() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="1 round of 1,000/s and 5,000/s, 50 x 64 B")
    parser.add_argument("--rounds", type=int, help="how often each is measured (7)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement (0.5)")
    parser.add_argument("--rates", type=numbers, metavar="N,...", help="messages a second, of all connections")
    parser.add_argument("--connections", type=numbers, metavar="N,...")
    parser.add_argument("--sizes", type=numbers, metavar="N,...", help="bytes")
    parser.add_argument("--only", default="", metavar="NAME,...", help="these servers")
    parser.add_argument("--output", type=Path, metavar="FILE", help="save the tables here, too")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.rounds = arguments.rounds or (1 if quick else 7)
    arguments.rates = arguments.rates or ((1000, 5000) if quick else RATES)
    arguments.connections = arguments.connections or ((50,) if quick else CONNECTIONS)
    arguments.sizes = arguments.sizes or ((64,) if quick else SIZES)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
