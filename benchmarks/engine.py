"""The load engine of ``anyecho bench`` beside a load in C: ``python benchmarks/engine.py`` (2 minutes).

Both run closed loops against one server in C, by turns, each on the last core while the server has the first.
The figure is the CPU time of the load per message; msg/s and p50 show that both see the same server. The table goes
to standard output.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

from anyecho.backends import BACKENDS, Backend, run
from anyecho.client.options import ConnectOptions
from anyecho.measure.bench import run_bench
from anyecho.measure.options import BenchOptions
from anyecho.net.sockets import SocketOptions
from process import Running, running
from servers import find
from table import markdown_table

PEERS = Path(__file__).parent / "peers"
SHAPES = ((1, 64), (10, 64), (100, 64), (100, 4096), (10, 65536))
HEAD = ("connections x bytes", "load", "CPU us/message", "of the load in C", "msg/s", "p50 us")
#: TCP_NODELAY, otherwise the defaults of the kernel, as the load in C.
_PLAIN = SocketOptions(tcp_notsent_lowat=0, tcp_user_timeout=0, keepalive=False)


class Figures(NamedTuple):
    cpu_us: float
    rate: float
    p50_us: float


def measure_c(program: Path, server: Running, connections: int, size: int, seconds: float) -> Figures:
    command = (program, str(server.port), str(connections), str(size), str(seconds))
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
    measures = {"C": partial(measure_c, program, server, *shape, seconds)} | {
        backend: partial(measure, backend, server, *shape, seconds) for backend in BACKENDS
    }
    values: dict[str, list[Figures]] = {name: [] for name in measures}
    for number in range(rounds):
        for name in list(measures)[:: -1 if number % 2 else 1]:
            values[name].append(measures[name]())

    rows = []
    for name, figures in values.items():
        ratios = [each.cpu_us / base.cpu_us for each, base in zip(figures, values["C"], strict=True)]
        cpu, rate, p50 = (statistics.median(column) for column in zip(*figures, strict=True))
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        rows.append([f"{shape[0]} x {shape[1]}", name, f"{cpu:.1f}", ratio, f"{rate:.0f}", f"{p50:.0f}"])

    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="how often each is measured (7)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement (0.5)")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="anyecho-bench-") as folder:
        program = Path(folder, "closed_load")
        subprocess.run(("cc", "-O2", "-o", program, PEERS / "closed_load.c"), check=True)
        with running(find("c-epoll", Path(folder)).command, core=cores[0]) as server:
            for shape in SHAPES:
                rows += compare(server, program, shape, arguments.rounds, arguments.seconds)

    print(markdown_table(HEAD, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
