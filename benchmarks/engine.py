"""The load engine of ``anyecho bench`` beside a load in C: ``python benchmarks/engine.py`` (5 minutes).

Both run closed loops against one server in C, by turns, each on the last core while the server has the first.
The figure is the CPU time of the load per message; msg/s and p50 show that both see the same server. A load that is
slower than its server also pays for its wake-ups: the second server polls without blocking and needs none, and a
second load in C busy-waits for a microsecond per message. "least Python" is the bound of `peers/least_load.py`. The
table goes to standard output.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from anyecho.backends import BACKENDS, Backend, run
from anyecho.client.options import ConnectOptions
from anyecho.measure.bench import run_bench
from anyecho.measure.options import BenchOptions
from anyecho.net.sockets import SocketOptions
from process import Running, running
from table import markdown_table

PEERS = Path(__file__).parent / "peers"
SHAPES = ((1, 64), (10, 64), (100, 64), (100, 4096), (10, 65536))
#: Timeouts of epoll_wait(2) in the server: it blocks, or polls.
WAITS = (-1, 0)
HEAD = (
    *("connections x bytes", "load", "CPU us/message", "of the load in C", "msg/s", "p50 us"),
    *("polling server: CPU us/message", "of the load in C"),
)
#: TCP_NODELAY, otherwise the defaults of the kernel, as the load in C.
_PLAIN = SocketOptions(tcp_notsent_lowat=0, tcp_user_timeout=0, keepalive=False)

#: Bytes of a message that comes in one piece, as `least_load.py` takes it.
_WHOLE = 4096


class Figures(NamedTuple):
    cpu_us: float
    rate: float
    p50_us: float


def measure_peer(
    program: Sequence[str], server: Running, connections: int, size: int, seconds: float, busy_ns: int = 0
) -> Figures:
    command = (*program, *map(str, (server.port, connections, size, seconds, busy_ns)))
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    messages, took, cpu_us, p50, _ = map(float, text.split())
    return Figures(cpu_us, messages / took, p50 / 1e3)


def measure(backend: Backend, server: Running, connections: int, size: int, seconds: float) -> Figures:
    connect = ConnectOptions(socket=_PLAIN)
    options = BenchOptions(connections=connections, size=size, duration=seconds, warmup=0.2, connect=connect)
    result = run(partial(run_bench, server.address, options, exclusive=True), backend=backend)
    assert result.counts.verified == result.counts.sent, result.error
    return Figures(result.generator.cpu_share * 1e6 / result.rate, result.rate, result.latency.value_at(0.5) / 1e3)


def compare(server: Running, program: Path, shape: tuple[int, int], rounds: int, seconds: float) -> list[list[str]]:
    """Return a row for each load: medians of the rounds, and of the ratios to the load in C of the same round."""
    in_c = partial(measure_peer, (str(program),), server, *shape, seconds)
    least = partial(measure_peer, (sys.executable, str(PEERS / "least_load.py")), server, *shape, seconds)
    measures = {"C": in_c, "C + 1 us": partial(in_c, busy_ns=1000)}
    if shape[1] <= _WHOLE:
        measures["least Python"] = least
    measures |= {backend: partial(measure, backend, server, *shape, seconds) for backend in BACKENDS}
    values: dict[str, list[Figures]] = {name: [] for name in measures}
    for number in range(rounds):
        for name in list(measures)[:: -1 if number % 2 else 1]:
            values[name].append(measures[name]())

    rows = []
    for name, figures in values.items():
        ratios = [each.cpu_us / base.cpu_us for each, base in zip(figures, values["C"], strict=True)]
        cpu, rate, p50 = (statistics.median(column) for column in zip(*figures, strict=True))
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        rows.append([name, f"{cpu:.1f}", ratio, f"{rate:.0f}", f"{p50:.0f}"])

    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="how often each is measured (7)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement (0.5)")
    names = [f"{connections}x{size}" for connections, size in SHAPES]
    parser.add_argument("--shapes", default=",".join(names), help="connections x bytes, by commas (all)")
    arguments = parser.parse_args()
    shapes = [SHAPES[names.index(name)] for name in arguments.shapes.split(",")]
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="anyecho-bench-") as folder:
        program = Path(folder, "closed_load")
        subprocess.run(("cc", "-O2", "-o", program, PEERS / "closed_load.c"), check=True)
        for shape in shapes:
            columns = []
            for wait in WAITS:
                echo = Path(folder, f"echo{wait}")
                subprocess.run(("cc", "-O2", f"-DWAIT={wait}", "-o", echo, PEERS / "echo.c"), check=True)
                with running((str(echo),), core=cores[0]) as server:
                    columns.append(compare(server, program, shape, arguments.rounds, arguments.seconds))
            name = f"{shape[0]} x {shape[1]}"
            rows += [[name, *row, *polling[1:3]] for row, polling in zip(*columns, strict=True)]

    print(markdown_table(HEAD, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
