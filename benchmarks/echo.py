"""How much an echo costs: ``python benchmarks/echo.py [ROUNDS [SECONDS]]`` (by default 5 rounds of 1 second).

Every server runs alone, pinned to one core, and is loaded from the other: 100 connections of 64 bytes, each
sending its next message when the last is back and equal. All servers have their turn in every round, in an order
that turns round; the table has medians, with the least and the most. The processor time an echo costs the server
survives a noisy machine; messages per second do not.

A second table is about fairness: the messages of 99 such peers beside one that writes and reads 64 KiB without
pause, as a part of what they make alone.
"""

from __future__ import annotations

import os
import select
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
PEERS = (
    "asyncio-protocol",
    "uvloop-protocol",
    "asyncio-streams",
    "uvloop-streams",
    "anyio-asyncio",
    "anyio-uvloop",
    "anyio-trio",
)
BACKENDS = ("asyncio", "uvloop", "trio")
SERVERS = {name: [sys.executable, str(HERE / "peers.py"), name] for name in PEERS} | {
    f"anyecho-{engine}-{backend}": [
        *(sys.executable, "-m", "anyecho", "serve", "-b", "tcp://127.0.0.1:0"),
        *("--backend", backend, "--engine", engine),
    ]
    for engine in ("events", "tasks")
    for backend in BACKENDS
}
MESSAGE = bytes(range(64))
CHUNK = 65536


@contextmanager
def running(name: str) -> Iterator[tuple[int, int]]:
    """Start a server on the first core; its process id and port."""
    process = subprocess.Popen(
        SERVERS[name], stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {0})
    )
    assert process.stdout is not None
    with process.stdout:
        try:
            yield process.pid, int(process.stdout.readline().rpartition(":")[2])
        finally:
            process.kill()
            process.wait()


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(port: int, connections: int, seconds: float) -> int:
    """Ping-pong on every connection for so long; the messages that came back, every one compared."""
    epoll = select.epoll()
    peers: dict[int, socket.socket] = {}
    for _ in range(connections):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peers[sock.fileno()] = sock
        epoll.register(sock, select.EPOLLIN)
        sock.send(MESSAGE)

    made = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for number, _ in epoll.poll(0.1):
            sock = peers[number]
            assert sock.recv(CHUNK) == MESSAGE, "not an echo"
            sock.send(MESSAGE)
            made += 1

    epoll.close()
    for sock in peers.values():
        sock.recv(CHUNK)  # the last reply: closing on it would be a reset
        sock.close()

    return made


@contextmanager
def flooding(port: int) -> Iterator[None]:
    """A peer, in threads of its own, that writes and reads without pause."""
    sock = socket.create_connection(("127.0.0.1", port))

    def write() -> None:
        try:
            while True:
                sock.sendall(bytes(CHUNK))
        except OSError:
            pass

    def read() -> None:
        try:
            while sock.recv(1 << 20):
                pass
        except OSError:
            pass

    threads = [threading.Thread(target=job) for job in (write, read)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        sock.close()


def measure_cost(name: str, seconds: float) -> tuple[float, float]:
    """Microseconds of processor time an echo, and thousands of messages a second."""
    with running(name) as (pid, port):
        load(port, 100, 0.2)  # warm
        before = processor_seconds(pid)
        made = load(port, 100, seconds)
        return (processor_seconds(pid) - before) / made * 1e6, made / seconds / 1e3


def measure_fairness(name: str, seconds: float) -> float:
    """What is left of the messages of 99 peers beside one that floods, in per cent."""
    with running(name) as (_, port):
        load(port, 99, 0.2)
        alone = load(port, 99, seconds)
        with flooding(port):
            return load(port, 99, seconds) / alone * 100


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):6.1f} ({min(values):.1f}-{max(values):.1f})"


def main() -> None:
    rounds, seconds = int((sys.argv[1:] or ["5"])[0]), float((sys.argv[2:] or ["1"])[0])
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    costs: dict[str, list[float]] = {name: [] for name in SERVERS}
    rates: dict[str, list[float]] = {name: [] for name in SERVERS}
    kept: dict[str, list[float]] = {name: [] for name in SERVERS if name.startswith("anyecho")}
    for turn in range(rounds):
        for name in list(SERVERS)[:: 1 if turn % 2 else -1]:
            cost, rate = measure_cost(name, seconds)
            costs[name].append(cost)
            rates[name].append(rate)
            if name in kept:
                kept[name].append(measure_fairness(name, seconds))

    print(f"{'100 x 64 B':22} {'us of CPU an echo':24} thousand messages/s")
    for name in SERVERS:
        print(f"{name:22} {spread(costs[name]):24} {spread(rates[name])}")
    print(f"\n{'99 x 64 B':22} per cent kept beside one that floods")
    for name, values in kept.items():
        print(f"{name:22} {spread(values)}")


if __name__ == "__main__":
    main()
