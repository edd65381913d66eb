"""Row 13: signals to real processes, in every phase, and in quick succession."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from tests.faults.scene import TCP, time_limit
from tests.faults.table import Observed, Scene, injects
from tests.support.process import Process, accepts, connect, exchange, read_all, wait_until

#: Seconds that an exit may take besides the times of its options.
END = 0.5
LONG = "1h"


def _serve(scene: Scene, *options: str, count: int = 1) -> Sequence[Process]:
    """Start `count` servers at the same time."""
    started = [
        scene.processes.start("serve", "-b", TCP, "--backend", scene.backend, *options) for _ in range(count)
    ]
    for process in started:
        process.addresses = process.read_lines(1)
    return started


def _ended(process: Process, since: float, allowed: float, *, least: float = 0.0) -> str:
    """Return the seconds until exit status 0; fail if it is earlier or later than allowed."""
    assert process.wait(time_limit(allowed + END)) == 0
    took = time.monotonic() - since
    assert least <= took < time_limit(allowed + END)
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


@injects(13, "SIGTERM to a busy server with 0.3 s of grace period, whose peer keeps sending")
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
        assert 0.3 <= half_closed < time_limit(0.3 + END)
        # No echo is pending then, so the linger of 0.2 s does not apply.
        ended = _ended(process, start, 0.5, least=0.3)

    return {
        "in the grace": "refuses new connections, echoes on old ones",
        "half-closed after": f"{half_closed:.2f} s",
        "end": ended,
    }


@injects(13, "SIGTERM, and SIGINT during the drain, to a server with a peer that stays and an hour of grace period")
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


@injects(13, "300 SIGTERM and SIGINT in quick succession to a busy server")
def storm(scene: Scene) -> Observed:
    [process] = _serve(scene, "--graceful-timeout", LONG, "--linger", LONG)
    with connect(process.addresses[0]) as sock:
        assert exchange(sock, b"hello") == b"hello"
        start = time.monotonic()
        for number in range(300):
            # The PID is not reused before the process has been waited for.
            os.kill(process.pid, (signal.SIGTERM, signal.SIGINT)[number % 2])
        status = process.wait(time_limit(0.5 + END))
        took = time.monotonic() - start
        assert sock.recv(1) == b""

    # The third one restores the default action, for a stuck event loop.
    assert status in (0, -signal.SIGTERM, -signal.SIGINT)
    assert process.errors() == ""
    return {"exit": status, "after": f"{took:.2f} s", "traceback": "none"}
