"""The process of a shard: run it as lines on standard input say, and write its outcome as a line.

The lines are a pickled job in base64; ``start`` with a time in seconds since 1970, once ``connected`` is written;
and ``interrupt`` at any time. The end of standard input interrupts too, because the parent is gone then.
The outcome is a result or an error, pickled in base64. Before it, there is ``progress REPLIES P99`` once a second.
"""

from __future__ import annotations

__all__ = ("CONNECTED", "INTERRUPT", "PROGRESS", "START", "ShardJob", "main")

import os
import pickle
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from anyio import Event, create_task_group, move_on_after

from anyecho._version import __version__
from anyecho.backends import Backend, run
from anyecho.errors import AnyechoError, StartError, unwrap_single
from anyecho.measure.bench import run_bench
from anyecho.measure.control import BenchControl
from anyecho.measure.options import BenchOptions
from anyecho.measure.progress import Progress
from anyecho.measure.result import RunResult
from anyecho.net.descriptors import write_all
from anyecho.net.fallback import wait_readable

#: The first words of lines, to the shard and from it.
START, INTERRUPT = b"start", b"interrupt"
CONNECTED, PROGRESS = b"connected", b"progress"
#: Seconds that a shard waits for its start: longer than all other shards take to connect.
_START_WITHIN = 600.0
_STDIN, _STDOUT = 0, 1


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Shard number `index` of `count`, and its `place` among the shards of its machine (number, how many).

    The connections of `options` are its own, its messages and rate those of all shards. `key` is unique.
    """

    key: str
    address: str
    options: BenchOptions
    backend: Backend
    index: int
    count: int
    place: tuple[int, int] = (0, 1)
    version: str = __version__


def main() -> None:
    """Run the shard that standard input describes."""
    lines = _Lines()
    try:
        job: ShardJob = pickle.loads(b64decode(lines.first()))
        outcome: RunResult | AnyechoError = run(_run, job, lines, backend=job.backend)
    except AnyechoError as exc:
        outcome = exc
    except EOFError:  # the parent is gone before it sent the job
        return

    _write(b64encode(pickle.dumps(outcome)))


async def _run(job: ShardJob, lines: _Lines) -> RunResult:
    control = BenchControl(_ProgressLines().update)
    start_at = 0.0
    started = Event()

    async def obey() -> None:
        nonlocal start_at
        while (line := await lines.next()).startswith(START):
            start_at = float(line.removeprefix(START))
            started.set()
        control.interrupt()

    async def wait_for_start() -> float:
        _write(CONNECTED)
        with move_on_after(_START_WITHIN):
            await started.wait()
            return start_at

        raise StartError(f"shard {job.index + 1} of {job.count} was not started within {_START_WITHIN:g} s")

    with unwrap_single():
        async with create_task_group() as tasks:
            tasks.start_soon(obey)
            result = await run_bench(
                job.address,
                job.options,
                backend=job.backend,
                shard=(job.index, job.count),
                start_at=wait_for_start,
                exclusive=True,
                control=control,
            )
            tasks.cancel_scope.cancel()

    return result


class _ProgressLines:
    def __init__(self) -> None:
        self._next = 0.0

    def update(self, progress: Callable[[], Progress]) -> None:
        """Write a line, once a second."""
        if (now := time.monotonic()) >= self._next:
            self._next = now + 1
            _write(b"%s %d %d" % (PROGRESS, *progress()))


class _Lines:
    """Lines of standard input. It is not read as a file: the buffer would hide a line from the event loop."""

    def __init__(self) -> None:
        self._received = b""

    def first(self) -> bytes:
        """Wait for the first line; raise `EOFError` if there is none."""
        while b"\n" not in self._received:
            if not (received := os.read(_STDIN, 65536)):
                raise EOFError
            self._received += received

        return self._take()

    async def next(self) -> bytes:
        """Wait for a line; return ``b""`` at the end."""
        while b"\n" not in self._received:
            await wait_readable(_STDIN)
            if not (received := os.read(_STDIN, 65536)):
                return b""
            self._received += received

        return self._take()

    def _take(self) -> bytes:
        line, _, self._received = self._received.partition(b"\n")
        return line


def _write(line: bytes) -> None:
    with suppress(OSError):  # the parent is gone
        write_all(_STDOUT, line + b"\n")
