"""A shard in a process of its own: prepare it, start it and take its result; interrupt it.

These are plain functions of arguments that can be pickled, so any `concurrent.futures.Executor` runs them; those of
a shard must run in the same process, which is the parent of the shard. The process of a shard has an event loop and
a GIL of its own, so that neither its parent nor another shard disturbs it. It ends when its parent is gone.
"""

from __future__ import annotations

__all__ = ("Prepared", "core_of", "discard", "finish", "interrupt", "prepare", "progress")

import os
import pickle
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import IO

from anyecho._version import __version__
from anyecho.errors import AnyechoError, LocalError, StartError
from anyecho.measure.generator import parse_cores
from anyecho.measure.options import BenchOptions
from anyecho.measure.progress import Progress
from anyecho.measure.result import RunResult
from anyecho.measure.shard_child import CONNECTED, INTERRUPT, PROGRESS, START, ShardJob


@dataclass(frozen=True)
class Prepared:
    """The wall clock of the machine before and after `prepare`, and a line if the shard is not pinned to a core."""

    began: float
    ended: float
    note: str = ""


class _Child:
    def __init__(self, popen: subprocess.Popen[bytes], stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.popen = popen
        self.stdin = stdin
        self.stdout = stdout
        self.result: RunResult | None = None
        self.progress: Progress | None = None

    def tell(self, line: bytes) -> None:
        with suppress(OSError):  # it has ended: `finish` says how
            self.stdin.write(line + b"\n")
            self.stdin.flush()


#: By key: the shards of this process.
_children: dict[str, _Child] = {}
#: The keys of interrupted shards: a signal may come before the process is started.
_interrupted: set[str] = set()


def prepare(job: ShardJob) -> Prepared:
    """Start the shard; return when its connections are open, or it was interrupted.

    Raises:
        StartError: this machine has another version of anyecho, or starts no process.
        LocalError: the process of the shard ended without a word.
        AnyechoError: the error of the run.
    """
    began = time.time()
    if job.version != __version__:
        raise StartError(f"it has anyecho {__version__}, and the shard is one of anyecho {job.version}")

    cpu, note = core_of(job.options, job.place)
    _children[job.key] = child = _start()
    child.tell(b64encode(pickle.dumps(replace(job, options=replace(job.options, cpu=cpu)))))
    if job.key in _interrupted:
        child.tell(INTERRUPT)
    line = child.stdout.readline().strip()
    if line != CONNECTED:
        child.result = _result(child, line)
    return Prepared(began, time.time(), note)


def finish(key: str, start_at: float) -> RunResult:
    """Start the measurement of the shard at `start_at`, in seconds since 1970; return its result.

    Raises:
        LocalError: the process of the shard ended without a result.
        AnyechoError: the error of the run.
    """
    child = _children.get(key)
    if child is None:
        raise LocalError("its parent process was replaced")

    child.tell(b"%s %r" % (START, start_at))
    try:
        return child.result or _result(child, _last_line(child))
    finally:
        discard(key)


def _last_line(child: _Child) -> bytes:
    while (line := child.stdout.readline().strip()).startswith(PROGRESS):
        replies, p99 = map(int, line.split()[1:])
        child.progress = Progress(replies, p99)

    return line


def progress(key: str) -> Progress | None:
    """Return how far the shard is; None if it has not begun, or does not run in a child of this process."""
    return None if (child := _children.get(key)) is None else child.progress


def interrupt(key: str) -> None:
    """End the shard soon; `finish` returns what it has measured so far."""
    _interrupted.add(key)
    if (child := _children.get(key)) is not None:
        child.tell(INTERRUPT)


def discard(key: str) -> None:
    """End the process of the shard, if it is still there."""
    _interrupted.discard(key)
    if (child := _children.pop(key, None)) is not None:
        child.popen.kill()
        child.popen.wait()
        for pipe in (child.stdin, child.stdout):
            with suppress(OSError):
                pipe.close()


def _start() -> _Child:
    code = f"import sys; sys.path[:] = {sys.path!r}; from anyecho.measure.shard_child import main; main()"
    try:
        # A process group of its own: Ctrl-C on the terminal is for the parent, which passes it on.
        popen = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
        )
    except OSError as exc:
        raise StartError(f"a process for a shard cannot be started: {exc.strerror}") from exc

    assert popen.stdin is not None
    assert popen.stdout is not None
    return _Child(popen, popen.stdin, popen.stdout)


def _result(child: _Child, line: bytes) -> RunResult:
    """Return the result in the last line of a shard, or raise the error that it is."""
    if line:
        outcome: RunResult | AnyechoError = pickle.loads(b64decode(line))
        if isinstance(outcome, AnyechoError):
            raise outcome
        return outcome

    status = child.popen.wait()
    raise LocalError(
        f"its process {f'was ended by signal {-status}' if status < 0 else f'ended with status {status}'}"
    )


def core_of(options: BenchOptions, place: tuple[int, int]) -> tuple[str | None, str]:
    """Return the cores for shard number ``place[0]`` of ``place[1]`` on this machine, and a note or ``""``.

    Each has a core of its own where there are enough; otherwise they share those of `options`.
    """
    number, count = place
    if not hasattr(os, "sched_getaffinity"):
        return options.cpu, "the shards are not pinned: this system cannot pin a process"

    cores = sorted(os.sched_getaffinity(0) if options.cpu is None else parse_cores(options.cpu))
    if count > len(cores):
        have = "1 core" if len(cores) == 1 else f"{len(cores)} cores"
        return options.cpu, f"the shards share their cores: there are {count} on {have}"
    if options.cpu is None and count == len(cores):
        return str(cores[number]), "the load has every core of its machine: a server there shares them"

    return str(cores[number]), ""
