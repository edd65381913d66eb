"""One worker beside two: messages per second of a handler that burns 1 ms each, and the CPU time of a plain echo.

    chrt -f 6 .venv/bin/python benchmarks/workers.py --backend asyncio

Both servers run at the same time, and are measured by turns on the same cores. The ratio of each pair counts.
"""

from __future__ import annotations

import argparse
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

PEERS = Path(__file__).parent / "peers"
MESSAGE = bytes(64)
BURNING = ("--handler", "burning_handler:burn")


@dataclass
class Server:
    """A supervisor with its workers, on `port`."""

    pid: int
    port: int

    def processor_ns(self) -> int:
        """Return the CPU time of the supervisor and its workers so far."""
        lists = Path(f"/proc/{self.pid}/task").glob("*/children")
        children = [child for each in lists for child in each.read_text().split()]
        paths = [path for pid in (self.pid, *children) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
        return sum(int(path.read_text().split()[0]) for path in paths)


@dataclass
class Figures:
    per_second: float
    cpu_us: float


@contextmanager
def running(workers: int, backend: str, *arguments: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "anyecho", "serve", "-b", "tcp://127.0.0.1:0", "--backend", backend]
    process = subprocess.Popen(
        [*command, "--workers", str(workers), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PEERS)},
    )
    assert process.stdout is not None
    try:
        yield Server(process.pid, int(process.stdout.readline().rpartition(":")[2]))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        process.stdout.close()


def measure(server: Server, connections: int, seconds: float) -> Figures:
    """Send in a closed loop on each of `connections`."""
    with ExitStack() as opened:
        selector = opened.enter_context(selectors.DefaultSelector())
        for _ in range(connections):
            sock = opened.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(sock, selectors.EVENT_READ)
            sock.sendall(MESSAGE)
        _exchange(selector, seconds / 4)  # warm-up
        spent = server.processor_ns()
        began = perf_counter()
        echoes = _exchange(selector, seconds)
        elapsed = perf_counter() - began
        spent = server.processor_ns() - spent

    return Figures(echoes / elapsed, spent / echoes / 1000)


def _exchange(selector: selectors.BaseSelector, seconds: float) -> int:
    """Answer each echo with the next message, for that long; return the number of echoes."""
    echoes = 0
    end = perf_counter() + seconds
    while perf_counter() < end:
        for key, _ in selector.select(1.0):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            assert len(sock.recv(len(MESSAGE))) == len(MESSAGE)
            sock.sendall(MESSAGE)
            echoes += 1

    return echoes


def compare(backend: str, rounds: int, seconds: float, connections: int, *arguments: str) -> list[list[Figures]]:
    """Return the figures of one worker and of two, by turns."""
    with running(1, backend, *arguments) as one, running(2, backend, *arguments) as two:
        return [[measure(server, connections, seconds) for server in (one, two)] for _ in range(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", action="append", choices=("asyncio", "uvloop", "trio"), default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    print("| backend | work | 1 worker | 2 workers | ratio (median of pairs) | range |")
    print("|---|---|---|---|---|---|")
    for backend in arguments.backend or ("asyncio", "uvloop", "trio"):
        pairs = compare(backend, arguments.rounds, arguments.seconds, 16, *BURNING)
        show(backend, "1 ms a message, messages/s", [[each.per_second for each in pair] for pair in pairs], 0)
        pairs = compare(backend, arguments.rounds, arguments.seconds, 100)
        show(backend, "echo, us of CPU", [[each.cpu_us for each in pair] for pair in pairs], 1)


def show(backend: str, work: str, pairs: list[list[float]], digits: int) -> None:
    ratios = sorted(two / one for one, two in pairs)
    ones, twos = (median(column) for column in zip(*pairs, strict=True))
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    cells = (backend, work, f"{ones:.{digits}f}", f"{twos:.{digits}f}", f"{median(ratios):.2f}", spread)
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
