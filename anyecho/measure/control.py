"""The other side of a run: ends it early, and is told of its progress."""

from __future__ import annotations

__all__ = ("BenchControl",)

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from anyio import CancelScope

from anyecho.measure.progress import Progress


class BenchControl:
    """The other side of a run: ends it early, and is told of its progress.

    `server_cpu`, if known, returns the nanoseconds of CPU time that the server has used so far. `on_progress` is
    called several times a second, with a function that returns the progress in a fraction of a millisecond.
    """

    def __init__(self, on_progress: Callable[[Callable[[], Progress]], None] | None = None) -> None:
        self.server_cpu: Callable[[], int | None] = lambda: None
        self.interrupted = False
        self.on_progress = on_progress or (lambda progress: None)
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
