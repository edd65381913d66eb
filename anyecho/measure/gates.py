"""Gates: conditions on the figures of runs under which a command fails, as in ``--fail-if 'p99>5ms'``."""

from __future__ import annotations

__all__ = ("Gate", "broken_gates", "parse_gate")

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from anyecho.errors import UsageError
from anyecho.measure.checks import failures, p_text
from anyecho.measure.compare import REPETITIONS_MIN, Comparison, Group, compared_by
from anyecho.measure.metrics import Metric, find_metric, known_median, share_of

_SYNTAX = "write like 'p99>5ms', 'rate<9k', 'lost>0.1%', or against a baseline 'p99>+5%'"


#: Why a metric that is no percentile is not known.
_UNKNOWN = {
    "max": "there is no latency",
    "mean": "there is no latency",
    "cpu": "only a run that started its server has it, and a merged one has not",
}


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Fails if the median of `metric` over repetitions is above (or below) `limit`.

    With `relative`, `limit` is a ratio to the baseline, and the gate fails only if the exact test finds a
    difference and the whole interval is beyond the limit.
    """

    text: str
    metric: Metric
    above: bool
    limit: float
    relative: bool = False

    def is_beyond(self, value: float) -> bool:
        return value > self.limit if self.above else value < self.limit


def parse_gate(text: str) -> Gate:
    """Return the gate of a text like ``p99>5ms``. Raises `UsageError` if it is none."""
    match = re.fullmatch(r"\s*([\w./]+)\s*([<>])\s*(\S+)\s*", text, re.A)
    if match is None:
        raise UsageError(f"{text!r} is not a condition: {_SYNTAX}")

    metric, above = find_metric(match[1]), match[2] == ">"
    if percent := re.fullmatch(r"([+-]?)(\d{1,6}(?:\.\d{0,6})?)%", match[3], re.A):
        amount = float(Fraction(percent[2]) / 100)  # in floats, 0.7 / 100 is less than 7 / 1000
        if percent[1]:
            limit = 1 + amount if percent[1] == "+" else 1 - amount
            return Gate(text=text, metric=metric, above=above, limit=limit, relative=True)
        if metric.name in ("lost", "wrong"):
            return Gate(text=text, metric=share_of(metric), above=above, limit=amount)
        raise UsageError(f"{text!r} is not a condition: a change has a sign, as in {match[1]}{match[2]}+{match[3]}")

    try:
        return Gate(text=text, metric=metric, above=above, limit=metric.parse(match[3]))
    except UsageError as exc:
        raise UsageError(f"{text!r} is not a condition: {exc}") from exc


def broken_gates(
    gates: Sequence[Gate], groups: Sequence[Group], comparisons: Sequence[Comparison] = ()
) -> list[str]:
    """Return a line for each failed gate; with any gate, also for each run that no gate may pass.

    Raises `UsageError` if a gate needs a baseline or more repetitions.
    """
    if not gates:
        return []

    reasons = [f"{group.name}: {reason}" for group in groups for run in group.runs for reason in failures(run)]
    for gate in gates:
        reasons += _broken_against_baseline(gate, groups, comparisons) if gate.relative else _broken(gate, groups)

    return list(dict.fromkeys(reasons))


def _broken(gate: Gate, groups: Sequence[Group]) -> Iterator[str]:
    for group in groups:
        value = known_median(gate.metric, group.runs)
        if value is None:
            why = _UNKNOWN.get(gate.metric.name, "10 samples must be beyond it")
            if gate.metric.name == "lag" and group.load.rate is None:
                why = "a closed loop has none"
            yield f"{group.name}: {gate.text}: {gate.metric.name} is not known ({why})"
            continue

        if gate.is_beyond(value):
            of = f" (median of {len(group.runs)} runs)" if len(group.runs) > 1 else ""
            yield f"{group.name}: {gate.text}: {gate.metric.name} is {gate.metric.show(value)}{of}"


def _broken_against_baseline(
    gate: Gate, groups: Sequence[Group], comparisons: Sequence[Comparison]
) -> Iterator[str]:
    if not comparisons:
        raise UsageError(f"{gate.text!r} needs a baseline: give its file first")

    compared = {each.changed.name for each in comparisons}
    for group in groups:
        if group.name not in compared:
            yield f"{group.name}: {gate.text}: the baseline has no such configuration"
    for each in comparisons:
        row = compared_by(gate.metric, each)
        one, other = len(each.baseline.runs), len(each.changed.runs)
        if min(one, other) < REPETITIONS_MIN:
            raise UsageError(f"{gate.text!r} needs {REPETITIONS_MIN} runs of each: there are {one} and {other}")
        if row.p is None or row.ratio is None:
            name = gate.metric.name
            yield f"{each.changed.name}: {gate.text}: {name} is 0 or not known in a run: there is no ratio"
            continue
        estimate, low, high = row.ratio
        # The interval of a few runs is too narrow at times; the test is exact.
        if row.different and gate.is_beyond(low) and gate.is_beyond(high):
            change = f"{estimate - 1:+.1%} ({low - 1:+.1%} to {high - 1:+.1%}, p {p_text(row.p)})"
            yield f"{each.changed.name}: {gate.text}: {gate.metric.name} changed by {change}"
