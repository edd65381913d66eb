"""The load generator itself: its clock, its cores, its garbage collection, and whether it was late."""

from __future__ import annotations

__all__ = (
    "LAG_LIMIT",
    "cores_available",
    "is_late",
    "lag_quantile",
    "measure_clock",
    "parse_cores",
    "pinned",
    "without_gc",
)

import gc
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from time import perf_counter_ns

from anyecho.errors import UsageError
from anyecho.measure.histogram import MIN_BEYOND, Histogram
from anyecho.measure.result import Clock

#: The lag, in nanoseconds, that is too much in any case, and the lag that is never too much: the aim of the pacing.
LAG_LIMIT = 1_000_000
_LAG_FLOOR = 100_000
_READINGS = 2000


def measure_clock() -> Clock:
    """Return the step and the cost of the clock of all stamps, from 2,000 readings."""
    readings = [perf_counter_ns() for _ in range(_READINGS)]
    steps = [later - earlier for earlier, later in pairwise(readings)]
    name = time.get_clock_info("perf_counter").implementation
    return Clock(name=name, step_ns=min((each for each in steps if each), default=1), cost_ns=median(steps))


def lag_quantile(count: int) -> float:
    """Return the quantile of `count` lags that decides about them: 0.99, or the highest that 10 samples are beyond.

    It is a whole percentage, and the median at least: one late message of a hundred is no late generator.
    """
    return min(max((count - MIN_BEYOND) * 100 // max(count, 1), 50), 99) / 100


def is_late(lag: Histogram, latency: Histogram) -> bool:
    """Return whether the lag at its `lag_quantile` is above 10 % of the median latency, or above 1 ms.

    A lag of 100 us never is.
    """
    limit = min(max(latency.value_at(0.5) // 10, _LAG_FLOOR), LAG_LIMIT)
    return lag.value_at(lag_quantile(lag.count)) > limit


def cores_available() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))

    return os.cpu_count() or 1


def parse_cores(text: str) -> set[int]:
    """Return the cores of a list like ``0,2-3``, as taskset(1) takes it. Raises `UsageError`."""
    cores: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part.strip(), re.A)
        if match is None:
            raise UsageError(f"cpu must be cores like 1 or 0,2-3, not {text[:40]!r}", options=("cpu",))
        cores.update(range(int(match[1]), int(match[2] or match[1]) + 1))

    return cores


@contextmanager
def pinned(text: str | None) -> Iterator[None]:
    """Run the block on the cores of `text`, if it is not None. Raises `UsageError` if that is impossible."""
    if text is None:
        yield
        return

    cores = parse_cores(text)
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("cpu has no effect: this system cannot pin a process", options=("cpu",))
    before = os.sched_getaffinity(0)
    if not cores or not cores <= before:
        have = ",".join(map(str, sorted(before)))
        raise UsageError(f"cpu {text} is not among the cores of this process: {have}", options=("cpu",))

    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def without_gc() -> Iterator[None]:
    """Collect garbage before the block, and none in it: a collection would delay each message meanwhile."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
