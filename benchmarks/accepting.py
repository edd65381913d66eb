"""The memory and CPU of idle connections, and the rate of accepting."""

from __future__ import annotations

__all__ = ("measure_accepting", "measure_idle")

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter, sleep

from anyecho.backends import Backend
from echoes import Figures, measure_echoes
from process import TIMEOUT, Running, ServerFailed, wait_until

IDLE = 9000
#: Seconds for which idle connections are measured: longer than the interval of the reaper by default (7.5 s).
REST = 10.0
#: Connections made at a time; every server has a backlog of 4096, the default limit of Linux.
BURST = 2000
BURSTS = 3
#: Seconds between checks for rest; a check costs the server nothing.
_LOOK_EVERY = 0.0002


def measure_idle(server: Running, seconds: float, backend: Backend) -> Figures:
    """Measure memory, wake-ups and CPU of 9000 connections that echoed one byte and are idle."""
    # One-time allocations for the first connections are not counted.
    measure_echoes(server, min(seconds, 0.2), backend, connections=100, size=64)
    wait_until(server.is_at_rest)
    before = server.private_bytes()
    with ExitStack() as opened:
        for start in range(0, IDLE, BURST):
            peers = opened.enter_context(_connected(server, min(BURST, IDLE - start)))
            _echo_one_byte(peers)
        wait_until(server.is_at_rest)
        after = server.private_bytes()
        wakeups, spent = server.wakeups(), server.processor_ns()
        sleep(REST)
        wakeups, spent = server.wakeups() - wakeups, server.processor_ns() - spent

    return {
        "kib_per_connection": (after - before) / IDLE / 1024,
        "wakeups_per_second": wakeups / REST,
        "cpu_percent": spent / REST / 1e9 * 100,
    }


def measure_accepting(server: Running, seconds: float, backend: Backend) -> Figures:
    """Measure how fast the server accepts a full backlog.

    The server is suspended while the kernel makes 2000 connections. The time counts from its resumption until the
    backlog is empty and all its threads sleep, so that each connection is set up. The clients use no CPU then.
    Afterwards each connection echoes a byte.
    """
    elapsed = 0.0
    spent = 0
    for number in range(BURSTS + 1):
        wait_until(server.is_at_rest)
        server.suspend()
        try:
            with _connected(server, BURST) as peers:
                before, started_at = server.processor_ns(), perf_counter()
                server.resume()
                wait_until(server.is_at_rest, every=_LOOK_EVERY)
                if number:  # the first is a warm-up
                    elapsed += perf_counter() - started_at
                    spent += server.processor_ns() - before
                _echo_one_byte(peers)
        finally:
            server.resume()

    accepted = BURST * BURSTS
    return {"accepts_per_second": accepted / elapsed, "cpu_us_per_accept": spent / accepted / 1e3}


@contextmanager
def _connected(server: Running, count: int) -> Iterator[list[socket.socket]]:
    """Yield `count` sockets, connected up to the accept backlog."""
    peers: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.socket()
            peers.append(sock)
            sock.setblocking(False)
            code = sock.connect_ex(("127.0.0.1", server.port))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        yield peers
    finally:
        for sock in peers:
            sock.close()


def _echo_one_byte(peers: list[socket.socket]) -> None:
    for sock in peers:
        sock.settimeout(TIMEOUT)
        sock.send(b"x")
    for number, sock in enumerate(peers):
        if (got := sock.recv(2)) != b"x":
            raise ServerFailed(f"connection {number} got {got!r} for b'x'")
