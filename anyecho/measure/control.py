"""The other side of a run: ends it early, and is told of its progress."""

from __future__ import annotations

__all__ = ("BenchControl",)

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from anyio import CancelScope

from anyecho.measure.opening import OpenConnection


class BenchControl:
    """The other side of a run: ends it early, and is told of its progress.

    `server_cpu`, if known, returns the nanoseconds of CPU time that the server has used so far.
    """

    def __init__(self, on_progress: Callable[[Sequence[OpenConnection]], None] | None = None) -> None:
        self.server_cpu: Callable[[], int | None] = lambda: None
        self.interrupted = False
        self.on_progress = on_progress or (lambda connections: None)
        self._scope: CancelScope | None = None

    def interrupt(self) -> None:
        """End the run soon; its result has what was measured so far."""
        self.interrupted = True
        if self._scope is not None:
            self._scope.cancel()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Cancel the block when the run is interrupted."""
        with CancelScope() as self._scope:
            if self.interrupted:
                self._scope.cancel()
            yield
        self._scope = None
