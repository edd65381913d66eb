"""Blocking reads and writes of descriptors shared with other processes, such as the standard streams.

O_NONBLOCK belongs to the open file description. Every process that holds the description sees it, and node, ssh and
many event loops set it. So EAGAIN on a standard stream is no failure: the call waits for readiness and tries again.
This module does not clear the flag, because the other process relies on it.
"""

from __future__ import annotations

__all__ = ("read_some", "write_all", "write_some")

import errno
import os
import select
from contextlib import suppress
from math import inf
from time import monotonic, sleep

#: Seconds between two attempts on a descriptor that select(2) reports ready and the system call does not.
_RETRY_DELAY = 0.001
_NO_ROOM = "its reader leaves no room for more"


def read_some(descriptor: int, max_bytes: int) -> bytes:
    """Read up to `max_bytes` bytes, waiting for the first; ``b""`` at the end of the file. Raises `OSError`."""
    while True:
        try:
            return os.read(descriptor, max_bytes)
        except BlockingIOError:
            select.select([descriptor], [], [])
            sleep(_RETRY_DELAY)


def write_all(descriptor: int, data: bytes, *, timeout: float | None = None) -> None:
    """Write all of `data`, however many system calls it takes. Raises `OSError`.

    With a `timeout` in seconds, raises `TimeoutError` (which is an `OSError`) when the reader leaves no room within
    that time, also on a descriptor in blocking mode: each piece is then one that fits once select(2) reports room.
    """
    rest = memoryview(data)
    deadline = inf if timeout is None else monotonic() + timeout
    piece = len(data) if timeout is None else select.PIPE_BUF
    while rest:
        if timeout is not None and not _has_room(descriptor, max(deadline - monotonic(), 0.0)):
            raise TimeoutError(errno.ETIMEDOUT, _NO_ROOM)
        try:
            rest = rest[os.write(descriptor, rest[:piece]) :]
        except BlockingIOError as exc:
            if timeout is None:
                _has_room(descriptor, None)
            elif monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, _NO_ROOM) from exc
            sleep(_RETRY_DELAY)


def write_some(descriptor: int, data: bytes) -> int:
    """Write the beginning of `data` that fits without blocking; return the number of bytes. Raises `OSError`."""
    written = 0
    with suppress(BlockingIOError):
        while written < len(data) and _has_room(descriptor, 0.0):
            written += os.write(descriptor, data[written : written + select.PIPE_BUF])

    return written


def _has_room(descriptor: int, timeout: float | None) -> bool:
    return bool(select.select([], [descriptor], [], timeout)[1])
