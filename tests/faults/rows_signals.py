"""Row 13: signals at real processes, in every phase of their lives, and in storms."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from tests.faults.scene import TCP, late
from tests.faults.table import Observed, Scene, injects
from tests.process import Process, accepts, connect, exchange, read_all, wait_until

#: What the end of a process may take besides the times that its options give.
END = 0.5
LONG = "1h"


def _serve(scene: Scene, *options: str, count: int = 1) -> Sequence[Process]:
    """So many servers, which start at the same time."""
    started = [
        scene.processes.start("serve", "-b", TCP, "--backend", scene.backend, *options) for _ in range(count)
    ]
    for process in started:
        process.addresses = process.read_lines(1)
    return started


def _ended(process: Process, since: float, allowed: float, *, least: float = 0.0) -> str:
    """How long it took to exit with 0, no sooner and no later than it may."""
    assert process.wait(late(allowed + END)) == 0
    took = time.monotonic() - since
    assert least <= took < late(allowed + END)
    return f"exit 0 after {took:.2f} s"


@injects(13, "SIGTERM to an idle server, SIGINT to another")
def idle_servers(scene: Scene) -> Observed:
    observed: dict[str, object] = {}
    for process, signum in zip(_serve(scene, count=2), (signal.SIGTERM, signal.SIGINT), strict=True):
        start = time.monotonic()
        process.signal(signum)
        observed[signum.name] = _ended(process, start, 0.0)
        assert process.errors() == ""

    return observed


@injects(13, "SIGTERM to a busy server with 0.3 s of grace, whose peer goes on")
def busy_server(scene: Scene) -> Observed:
    [process] = _serve(scene, "--graceful-timeout", "300ms", "--linger", "200ms")
    with connect(process.addresses[0]) as sock:
        assert exchange(sock, b"before") == b"before"
        start = time.monotonic()
        process.signal(signal.SIGTERM)
        wait_until(lambda: not accepts(process.addresses[0]))
        assert exchange(sock, b"during") == b"during"
        assert read_all(sock) == b""
        half_closed = time.monotonic() - start
        assert 0.3 <= half_closed < late(0.3 + END)
        # The peer is owed nothing by then, so that the linger of 0.2 s is not waited for.
        ended = _ended(process, start, 0.5, least=0.3)

    return {
        "in the grace": "refuses new ones, echoes old ones",
        "half-closed after": f"{half_closed:.2f} s",
        "end": ended,
    }


@injects(13, "SIGTERM, and SIGINT while it drains, to a server whose peer would stay for an hour of grace")
def twice(scene: Scene) -> Observed:
    [process] = _serve(scene, "--graceful-timeout", LONG, "--linger", LONG)
    with connect(process.addresses[0]) as sock:
        assert exchange(sock, b"hello") == b"hello"
        process.signal(signal.SIGTERM)
        wait_until(lambda: not accepts(process.addresses[0]))
        assert exchange(sock, b"still") == b"still"
        start = time.monotonic()
        process.signal(signal.SIGINT)
        ended = _ended(process, start, 0.5)
        assert sock.recv(1) == b""

    return {"after the first": "echoes", "after the second": ended}


@injects(13, "a storm of 300 SIGTERM and SIGINT to a busy server, as quick as they can be sent")
def storm(scene: Scene) -> Observed:
    [process] = _serve(scene, "--graceful-timeout", LONG, "--linger", LONG)
    with connect(process.addresses[0]) as sock:
        assert exchange(sock, b"hello") == b"hello"
        start = time.monotonic()
        for number in range(300):
            # Its number is nobody else's until it has been waited for.
            os.kill(process.pid, (signal.SIGTERM, signal.SIGINT)[number % 2])
        status = process.wait(late(0.5 + END))
        took = time.monotonic() - start
        assert sock.recv(1) == b""

    # The third restores the default action, for loops that are stuck.
    assert status in (0, -signal.SIGTERM, -signal.SIGINT)
    assert process.errors() == ""
    return {"exit": status, "after": f"{took:.2f} s", "traceback": "none"}
