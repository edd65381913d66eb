"""Redirect standard streams, and fill pipes."""

from __future__ import annotations

__all__ = ("redirected", "unread_pipe")

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def redirected(standard: int, descriptor: int) -> Iterator[None]:
    """Make the descriptor `standard` a duplicate of `descriptor` within the block."""
    kept = os.dup(standard)
    os.dup2(descriptor, standard)
    try:
        yield
    finally:
        os.dup2(kept, standard)
        os.close(kept)


@contextmanager
def unread_pipe(*, blocking: bool = True) -> Iterator[tuple[int, int]]:
    """Yield both ends of a full pipe."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    try:
        with suppress(BlockingIOError):
            while True:
                os.write(write_end, b"\n" * 4096)
        os.set_blocking(write_end, blocking)
        yield read_end, write_end
    finally:
        os.close(read_end)
        os.close(write_end)
