"""How far a load is: the replies so far, and the p99 of the newest ones."""

from __future__ import annotations

__all__ = ("Progress", "progress_of")

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from anyecho.measure.quantiles import quantile

#: Replies that the p99 is made of: the newest ones, so that it takes a fraction of a millisecond.
_SAMPLES = 1000


class Progress(NamedTuple):
    """Replies so far, and their p99 in nanoseconds, 0 without any."""

    replies: int
    p99: int

    @classmethod
    def of_all(cls, parts: Sequence[Progress]) -> Progress:
        """Return the sum of the replies, and the largest p99."""
        return cls(sum(each.replies for each in parts), max((each.p99 for each in parts), default=0))


class _Stamped(Protocol):
    @property
    def due(self) -> Sequence[int]: ...
    @property
    def received(self) -> Sequence[int]: ...


def progress_of(connections: Sequence[_Stamped]) -> Progress:
    """Return the progress of a load on `connections`."""
    latencies: list[int] = []
    each_last = max(_SAMPLES // max(len(connections), 1), 1)
    for each in connections[:_SAMPLES]:
        end = len(each.received)
        begin = max(end - each_last, 0)
        pairs = zip(each.due[begin:end], each.received[begin:end], strict=True)
        latencies += [reply - due for due, reply in pairs if reply]

    p99 = quantile(sorted(latencies), 0.99) if latencies else 0
    return Progress(sum(len(each.received) for each in connections), p99)
