"""Results as a run returns them, made from given or seeded samples."""

from __future__ import annotations

__all__ = ("document", "load", "result", "second")

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from random import Random
from statistics import median
from typing import Any

from anyecho.measure.histogram import Histogram
from anyecho.measure.result import (
    LEVEL_EDGES,
    Clock,
    Counts,
    Document,
    Generator,
    Load,
    Machine,
    RunResult,
    Second,
    Spread,
    Steadiness,
)


def load(**fields: Any) -> Load:
    defaults: dict[str, Any] = {
        "address": "tcp://127.0.0.1:10000",
        "transport": "tcp",
        "connections": 2,
        "size": 64,
        "rate": 1000.0,
        "duration": 3.0,
        "timeout": 10.0,
    }
    return Load(**defaults | fields)


def second(start: float, samples: Sequence[int], size: int = 64) -> Second:
    """Return the second with these latencies in nanoseconds."""
    levels = [0] * (len(LEVEL_EDGES) + 1)
    for each in samples:
        levels[bisect_left(LEVEL_EDGES, each)] += 1

    histogram = Histogram.from_samples(samples)
    p50, p99 = (None if (value := histogram.quantile(q)) is None else value / 1e9 for q in (0.5, 0.99))
    count = len(samples)
    return Second(start=start, verified=count, bytes=count * size, p50=p50, p99=p99, levels=tuple(levels))


def latencies(seed: int, seconds: int = 3, count: int = 1000, scale: float = 100e3) -> list[list[int]]:
    """Return seeded latencies of each second: log-normal around `scale` nanoseconds, with a stall in the middle."""
    random = Random(seed)
    drawn = [[round(random.lognormvariate(0, 0.4) * scale) for _ in range(count)] for _ in range(seconds)]
    drawn[seconds // 2][: count // 50] = [round(scale * 300 * (1 - step / count)) for step in range(count // 50)]
    return drawn


def result(seed: int = 1, *, seconds: int = 3, scale: float = 100e3, **fields: Any) -> RunResult:
    """Return an open-loop result of 1,000 messages/s, with `fields` in place of its own."""
    return replace(_result(seed, seconds, scale), **fields)


@cache
def _result(seed: int, seconds: int, scale: float) -> RunResult:
    drawn = latencies(seed, seconds, scale=scale)
    flat = [each for samples in drawn for each in samples]
    half = len(flat) // 2
    return RunResult(
        load=load(seed=seed, duration=float(seconds)),
        counts=Counts(sent=len(flat), verified=len(flat), wrong=0, lost=0),
        started_at=1_790_000_000.0 + seed,
        seconds=float(seconds),
        latency=Histogram.from_samples(flat),
        uncorrected=Histogram.from_samples([min(each, round(scale * 3)) for each in flat]),
        lag=Histogram.from_samples([each // 20 for each in flat]),
        generator=Generator(
            backend="asyncio",
            clock=Clock(step_ns=230, cost_ns=310.0),
            cpu_share=0.31,
            cores=2,
            asked_rate=1000.0,
            achieved_rate=1000.0,
        ),
        per_second=tuple(second(float(start), samples) for start, samples in enumerate(drawn)),
        spread=Spread.of((half, len(flat) - half), (scale / 1e9, scale * 1.1 / 1e9)),
        steadiness=Steadiness.of([median(samples) / 1e9 for samples in drawn]),
        server_cpu_per_echo=22.5e-6 * scale / 100e3,
    )


def document(*runs: RunResult) -> Document:
    return Document(
        version="0.1.0",
        command=("anyecho", "bench", "tcp://127.0.0.1:10000", "--rate", "1k"),
        machine=Machine(
            system="Linux 6.18",
            processor="Some processor",
            cores=2,
            governor="performance",
            load_before=(0.5, 0.4, 0.3),
            load_after=(0.7, 0.5, 0.3),
            steal=0.02,
        ),
        versions={"python": "3.11.7", "anyio": "4.16.0"},
        runs=runs or (result(),),
    )
