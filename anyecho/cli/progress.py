"""One line on a terminal while a load runs: how far it is, messages per second, p99 of the last second.

rich is not used here: its rendering takes about a millisecond, in which the load sends nothing.
"""

from __future__ import annotations

__all__ = ("ProgressLine",)

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter_ns
from typing import Protocol

from anyecho.measure.checks import duration_text, rate_text
from anyecho.measure.options import BenchOptions
from anyecho.measure.quantiles import quantile
from anyecho.net.descriptors import write_some

_SECOND = 1_000_000_000
_STDERR = 2
_WIDTH = 20
#: Replies that the p99 is made of: the newest ones, so that a line takes a fraction of a millisecond.
_SAMPLES = 1000
_CLEAR = "\r\x1b[K"


class _Stamped(Protocol):
    @property
    def due(self) -> Sequence[int]: ...
    @property
    def received(self) -> Sequence[int]: ...


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

    def update(self, connections: Sequence[_Stamped]) -> None:
        """Rewrite the line, once a second. An argument of `BenchControl`."""
        now = self._clock()
        if not self._is_shown or now < self._next:
            return

        replies = sum(len(each.received) for each in connections)
        rate = (replies - self._replies) * _SECOND / (now - self._next + _SECOND)
        self._replies, self._next = replies, now + _SECOND
        done = min(self._done(now, replies), 1.0)
        bar = ("#" * int(done * _WIDTH)).ljust(_WIDTH)
        self._write(
            f"{_CLEAR}[{bar}] {done:4.0%}  {rate_text(rate).removesuffix('/s')} msg/s  p99 {_p99(connections)}"
        )

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


def _p99(connections: Sequence[_Stamped]) -> str:
    latencies: list[int] = []
    each_last = max(_SAMPLES // max(len(connections), 1), 1)
    for each in connections[:_SAMPLES]:
        end = len(each.received)
        begin = max(end - each_last, 0)
        pairs = zip(each.due[begin:end], each.received[begin:end], strict=True)
        latencies += [reply - due for due, reply in pairs if reply]

    return duration_text(quantile(sorted(latencies), 0.99) / 1e9) if latencies else "-"


def _write_stderr(text: str) -> None:
    with suppress(OSError):
        write_some(_STDERR, text.encode())
