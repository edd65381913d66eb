"""Comparisons as lines of text."""

from __future__ import annotations

__all__ = ("comparison_lines", "interval_text")

from collections.abc import Iterator
from statistics import median

from anyecho.measure.checks import failures, p_text
from anyecho.measure.compare import Comparison, Group, Row
from anyecho.measure.statistics import Interval
from anyecho.measure.text import common_text


def comparison_lines(comparison: Comparison) -> list[str]:
    """Return the lines of one comparison: both configurations, a row per metric, and what casts doubt on it."""
    baseline, changed = comparison.baseline, comparison.changed
    lines = []
    for role, group in (("baseline", baseline), ("changed", changed)):
        count = "1 run" if len(group.runs) == 1 else f"{len(group.runs)} runs"
        load = common_text([run.load for run in group.runs])
        lines.append(f"{role}: {f'{group.name}: ' * (group.name != load)}{load}: {count}")
    if comparison.paired:
        lines[-1] += f", by pairs of the same round, {comparison.test} test"

    lines += ["", _row("", "baseline", "changed", "ratio", "95% interval", "p", "verdict")]
    lines += [_metric_line(row) for row in comparison.rows if row.baseline or row.changed]
    if baseline.load.shard_count > 1 or changed.load.shard_count > 1:
        lines.append("! a shard is a part of a load: --merge adds the shards of one load up")
    return [*lines, *_doubts(baseline), *_doubts(changed), ""]


def interval_text(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _metric_line(row: Row) -> str:
    one, other = (row.metric.show(median(each)) if each else "-" for each in (row.baseline, row.changed))
    ratio = f"{row.ratio.estimate:.3f}" if row.ratio else "-"
    # The resamples of a few runs are few: their interval would be too narrow.
    interval = interval_text(row.ratio) if row.ratio and row.p is not None else "-"
    return _row(row.metric.name, one, other, ratio, interval, p_text(row.p), row.verdict)


def _row(name: str, one: str, other: str, ratio: str, interval: str, p: str, verdict: str) -> str:
    return f"{name:<5}{one:>10}{other:>10}{ratio:>9}{interval:>17}{p:>8}  {verdict}"


def _doubts(group: Group) -> Iterator[str]:
    reasons = [reason for run in group.runs for reason in failures(run)]
    for reason in dict.fromkeys(reasons):
        count = f" in {reasons.count(reason)} of {len(group.runs)} runs" if len(group.runs) > 1 else ""
        yield f"! {group.name}: {reason}{count}"
