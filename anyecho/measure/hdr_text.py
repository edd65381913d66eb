"""Results in the text forms of HdrHistogram: the interval log, and the percentile distribution.

The lines are made here: hdrhistogram 0.10.8 fails on the start time of a log, and does not scale the standard
deviation of a distribution.
"""

from __future__ import annotations

__all__ = ("interval_log", "percentile_distribution")

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from anyecho.measure.histogram import Histogram
from anyecho.measure.result import RunResult

_MILLISECOND = 1e6
_MICROSECOND = 1e3
#: Buckets of the layout, as the footer of a distribution states them.
_BUCKETS, _SUB_BUCKETS = 32, 2048


def interval_log(runs: Sequence[RunResult]) -> Iterator[str]:
    """Yield the lines of an interval log (``.hlog``), one interval per run, in nanoseconds.

    The corrected latencies have no tag, so that a tool reads them by default; the tags `uncorrected` and `lag`
    hold the other histograms.
    """
    start = min((run.started_at for run in runs), default=0.0)
    yield "#[anyecho: latency from the due time; tags: uncorrected, lag; nanoseconds, maximum in ms]"
    yield "#[Histogram log format version 1.3]"
    date = datetime.fromtimestamp(start, UTC)
    yield f"#[StartTime: {start:.3f} (seconds since epoch), {date:%Y-%m-%dT%H:%M:%SZ}]"
    yield '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"'
    for run in sorted(runs, key=lambda run: run.started_at):
        for tag, histogram in (("", run.latency), ("Tag=uncorrected,", run.uncorrected), ("Tag=lag,", run.lag)):
            if histogram.count:
                offset, longest = run.started_at - start, histogram.max / _MILLISECOND
                yield f"{tag}{offset:.3f},{run.seconds:.3f},{longest:.3f},{histogram.payload}"


def percentile_distribution(histogram: Histogram) -> Iterator[str]:
    """Yield the lines of a percentile distribution (``.hgrm``), in microseconds."""
    yield f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>14}"
    yield ""
    for level, value, count in histogram.spectrum():
        scaled = value / _MICROSECOND
        inverse = f" {1 / (1 - level):14.2f}" if level < 1 else ""
        yield f"{scaled:12.3f} {level:2.12f} {count:10d}{inverse}"

    mean, deviation, longest = (
        each / _MICROSECOND for each in (histogram.mean, histogram.deviation, histogram.max)
    )
    yield f"#[Mean    = {mean:12.3f}, StdDeviation   = {deviation:12.3f}]"
    yield f"#[Max     = {longest:12.3f}, Total count    = {histogram.count:12d}]"
    yield f"#[Buckets = {_BUCKETS:12d}, SubBuckets     = {_SUB_BUCKETS:12d}]"
