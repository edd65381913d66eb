"""Figures of a run by name, for comparisons and gates: p99, max, mean, rate, cpu, lost, wrong, lag."""

from __future__ import annotations

__all__ = ("COMPARED", "Metric", "find_metric", "known_median", "share_of")

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import median

from anyecho.errors import UsageError
from anyecho.measure.checks import duration_text, rate_text
from anyecho.measure.result import RunResult
from anyecho.units import parse_duration, parse_rate


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of a run. `of` returns None where a run does not have it, or has too few samples for it."""

    name: str
    of: Callable[[RunResult], float | None]
    show: Callable[[float], str]
    parse: Callable[[str], float]


def find_metric(name: str) -> Metric:
    """Return the metric of that name. Raises `UsageError` if there is none."""
    if name in _METRICS:
        return _METRICS[name]
    if match := re.fullmatch(r"p(\d{1,2}(?:\.\d{1,12})?)", name, re.A):
        quantile = float(match[1]) / 100
        return _duration(name, lambda run: run.latency.quantile(quantile))

    known = ", ".join(_METRICS)
    raise UsageError(f"unknown metric {name!r}: write a percentile like p99, or one of {known}")


def known_median(metric: Metric, runs: Iterable[RunResult]) -> float | None:
    """Return the median of `metric` over `runs`; None if it is not known for each of them."""
    values = [metric.of(run) for run in runs]
    known = [each for each in values if each is not None]
    return median(known) if known and len(known) == len(values) else None


def share_of(metric: Metric) -> Metric:
    """Return the share that `metric`, a number of messages, has of the messages sent."""
    return replace(
        metric,
        of=lambda run: (metric.of(run) or 0.0) / max(run.counts.sent, 1),
        show=lambda value: f"{100 * value:.4g}%",
    )


def _duration(name: str, nanoseconds: Callable[[RunResult], float | None]) -> Metric:
    def seconds(run: RunResult) -> float | None:
        value = nanoseconds(run)
        return None if value is None else value / 1e9

    return Metric(name=name, of=seconds, show=duration_text, parse=parse_duration)


def _count(name: str, count: Callable[[RunResult], int]) -> Metric:
    return Metric(name=name, of=count, show=lambda value: f"{value:g}", parse=parse_rate)


def _cpu(run: RunResult) -> float | None:
    return None if run.server_cpu_per_echo is None else run.server_cpu_per_echo * 1e9


_METRICS = {
    metric.name: metric
    for metric in (
        _duration("max", lambda run: run.latency.max if run.latency.count else None),
        _duration("mean", lambda run: run.latency.mean if run.latency.count else None),
        _duration("lag", lambda run: run.lag.quantile(0.99)),
        Metric(name="rate", of=lambda run: run.rate, show=rate_text, parse=parse_rate),
        _duration("cpu", _cpu),
        _count("lost", lambda run: run.counts.lost),
        _count("wrong", lambda run: run.counts.wrong),
    )
}
#: The metrics of a comparison. In an open loop, the rate is given and not compared.
COMPARED = ("p50", "p99", "rate", "cpu")
