"""Due times of an open loop: fixed before the run by rate, arrivals and seed, whatever the server does."""

from __future__ import annotations

__all__ = ("due_times",)

from collections.abc import Iterator
from itertools import count, islice, takewhile
from random import Random
from typing import Literal

_SECOND = 1_000_000_000


def due_times(
    rate: float,
    arrivals: Literal["fixed", "exponential"],
    *,
    seconds: float | None,
    messages: int | None,
    seed: object,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[int]:
    """Yield nanoseconds after the start, in ascending order: `rate` a second on average.

    They end before `seconds`, or after `messages`, whichever comes first; None is no limit. Fixed arrivals are
    i / rate; exponential gaps make a Poisson process, which is the same for the same `seed`. The `shard` (index,
    count) takes every count-th time, so that all shards together are the whole schedule.
    """
    times = _fixed(rate) if arrivals == "fixed" else _exponential(rate, Random(repr(seed)))
    if seconds is not None:
        end = seconds * _SECOND
        times = takewhile(lambda time: time < end, times)

    index, shards = shard
    return islice(times, index, messages, shards)


def _fixed(rate: float) -> Iterator[int]:
    # Not a sum of gaps: its rounding errors would add up.
    return (int(number * _SECOND / rate) for number in count())


def _exponential(rate: float, random: Random) -> Iterator[int]:
    time = 0.0
    while True:
        time += random.expovariate(rate) * _SECOND
        yield int(time)
