"""One line on a terminal while a load runs: how far it is, messages per second, p99 of the last second.

rich is not used here: one of its bars takes 0.3 ms, and up to 1.4 ms, in which the load sends nothing. This line
takes 0.07 ms.
"""

from __future__ import annotations

__all__ = ("ProgressLine",)

import os
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter_ns

from anyecho.measure.checks import duration_text, rate_text
from anyecho.measure.options import BenchOptions
from anyecho.measure.progress import Progress
from anyecho.net.descriptors import write_some

_SECOND = 1_000_000_000
_STDERR = 2
_WIDTH = 20
_CLEAR = "\r\x1b[K"


class ProgressLine:
    """Writes to standard error, if that is a terminal; what the terminal does not take at once is not written."""

    def __init__(
        self, clock: Callable[[], int] = perf_counter_ns, write: Callable[[str], None] | None = None
    ) -> None:
        self._clock = clock
        self._write = write if write is not None else _write_stderr
        self._is_shown = write is not None or os.isatty(_STDERR)
        self._options = BenchOptions()
        self._began = self._next = 0
        self._replies = 0

    def begin(self, options: BenchOptions) -> None:
        """Begin a run; the line is shown for the first time a second later."""
        self._options = options
        self._began = self._clock()
        self._next = self._began + _SECOND
        self._replies = 0

    def update(self, progress: Callable[[], Progress]) -> None:
        """Rewrite the line, once a second; `progress` is called then. An argument of `BenchControl`."""
        now = self._clock()
        if not self._is_shown or now < self._next:
            return

        replies, p99 = progress()
        rate = (replies - self._replies) * _SECOND / (now - self._next + _SECOND)
        self._replies, self._next = replies, now + _SECOND
        done = min(self._done(now, replies), 1.0)
        bar = ("#" * int(done * _WIDTH)).ljust(_WIDTH)
        shown = duration_text(p99 / 1e9) if p99 else "-"
        self._write(f"{_CLEAR}[{bar}] {done:4.0%}  {rate_text(rate).removesuffix('/s')} msg/s  p99 {shown}")

    def end(self) -> None:
        """Remove the line."""
        if self._is_shown:
            self._write(_CLEAR)

    def _done(self, now: int, replies: int) -> float:
        options = self._options
        if options.requests is not None:
            return replies / options.requests

        assert options.duration is not None
        return (now - self._began) / _SECOND / (options.warmup + options.duration)


def _write_stderr(text: str) -> None:
    with suppress(OSError):
        write_some(_STDERR, text.encode())
