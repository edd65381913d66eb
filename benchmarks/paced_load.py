"""The open-loop load in C, as a process that is told rate and duration, and what a server spends on it."""

from __future__ import annotations

__all__ = ("Figures", "PacedLoad", "compiled")

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from process import TIMEOUT, Running, ServerFailed, wait_until

_SOURCE = Path(__file__).parent / "peers" / "paced_load.c"
#: At a low rate a second has few messages: 100 a second are measured for longer.
_MIN_MESSAGES = 100
#: The first echoes, messages a second and seconds: caches, allocators and branches are warm afterwards.
_WARM_UP = (5000, 0.2)


class Figures(NamedTuple):
    cpu_us: float
    p50_us: float
    p99_us: float
    lag_p99_us: float
    #: Whether the load held the rate within 1 %.
    held: bool


@contextmanager
def compiled() -> Iterator[Path]:
    """The program of the load, in a folder of its own. This process leaves the first core to the servers."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(prefix="anyecho-bench-") as folder:
        binary = Path(folder) / "load"
        subprocess.run(["cc", "-O2", "-o", binary, _SOURCE], check=True)
        yield binary


class PacedLoad:
    """`connections` to `server`, each of which sends messages of `size` bytes at their due times."""

    def __init__(self, binary: Path, server: Running, connections: int, size: int) -> None:
        self._server = server
        command = (binary, str(server.port), str(connections), str(size))
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> PacedLoad:
        if self._read_line() != "ready\n":
            raise ServerFailed("the load could not connect")

        self._run(*_WARM_UP)
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate()

    def measure(self, rate: int, seconds: float) -> Figures:
        """Send `rate` messages a second in all, for `seconds` or as long as a hundred messages take."""
        server = self._server
        wait_until(server.is_at_rest, seconds=TIMEOUT)
        before = server.processor_ns()
        messages, took, p50, p99, _, lag = self._run(rate, max(seconds, _MIN_MESSAGES / rate))
        wait_until(server.is_at_rest, seconds=TIMEOUT)
        spent = server.processor_ns() - before
        held = abs(messages / took / rate - 1) < 0.01
        return Figures(spent / messages / 1e3, p50 / 1e3, p99 / 1e3, lag / 1e3, held)

    def _run(self, rate: int, seconds: float) -> list[float]:
        assert self._process.stdin is not None
        print(f"{rate} {seconds}", file=self._process.stdin, flush=True)
        if not (answer := self._read_line().split()):
            raise ServerFailed("the load ended: a reply was wrong or missing")

        return list(map(float, answer))

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()
