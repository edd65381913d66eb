"""Compare runs. The unit is the repetition: one figure of each, never single echoes.

The size of a difference is the ratio of medians with its bootstrap interval. An exact test decides whether there is
one; its p-values are adjusted for the number of metrics by Holm's method.
"""

from __future__ import annotations

__all__ = (
    "REPETITIONS_MIN",
    "Comparison",
    "Group",
    "Row",
    "compare",
    "compare_within",
    "compared_by",
    "groups",
    "matched",
)

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from anyecho.errors import UsageError
from anyecho.measure.metrics import COMPARED, Metric, find_metric
from anyecho.measure.result import Document, Load, RunResult
from anyecho.measure.statistics import Interval, adjusted_by_holm, mann_whitney_p, median_ratio, wilcoxon_p
from anyecho.measure.text import common_text, differences

#: With fewer repetitions of each, there is no verdict: 3 against 3 cannot reach a p-value below 0.1.
REPETITIONS_MIN = 4
#: A difference is called one below this p-value.
SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Group:
    """The repetitions of one configuration."""

    name: str
    load: Load
    backend: str
    runs: tuple[RunResult, ...]

    @property
    def rounds(self) -> list[int] | None:
        """The rounds of the runs, if each has its own."""
        rounds = [run.round for run in self.runs if run.round is not None]
        return rounds if len(set(rounds)) == len(self.runs) else None


@dataclass(frozen=True, kw_only=True)
class Row:
    """The comparison of one metric. `ratio` and `p` are None if the metric is not known or not tested."""

    metric: Metric
    baseline: tuple[float, ...]
    changed: tuple[float, ...]
    ratio: Interval | None = None
    p: float | None = None
    verdict: str = ""

    @property
    def different(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two groups, and a row per metric. If `paired`, each run has its partner of the same round in the other."""

    baseline: Group
    changed: Group
    paired: bool
    rows: tuple[Row, ...]
    test: str = "Mann-Whitney"


def groups(document: Document, name: str = "") -> list[Group]:
    """Return the configurations of `document`, in the order of their first runs.

    Each is named by what sets it apart; one alone by `name`.
    """
    found: dict[tuple[Load, str], list[RunResult]] = {}
    for run in document.runs:
        load = replace(run.load, seed=0, shard_index=0)
        found.setdefault((load, run.generator.backend), []).append(run)

    names = differences([load for load, _ in found])
    if len({backend for _, backend in found}) > 1:
        names = [f"{text}, load on {key[1]}".removeprefix(", ") for text, key in zip(names, found, strict=True)]
    return [
        Group(
            name=text or name or common_text([run.load for run in runs]),
            load=load,
            backend=backend,
            runs=tuple(runs),
        )
        for text, ((load, backend), runs) in zip(names, found.items(), strict=True)
    ]


def matched(baseline: Sequence[Group], changed: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Return the pairs of groups of the same configuration. Addresses may differ.

    A group alone is compared with another one alone, whatever their configurations. Raises `UsageError` if there is
    no pair.
    """
    if len(baseline) == len(changed) == 1:
        return [(baseline[0], changed[0])]

    pairs = [
        (one, other)
        for other in changed
        for one in baseline
        if (replace(one.load, address=""), one.backend) == (replace(other.load, address=""), other.backend)
    ]
    if not pairs:
        raise UsageError("nothing to compare: the results have no configuration in common")

    return pairs


def compare(
    baseline: Group, changed: Group, metrics: Sequence[str] = COMPARED, *, interleaved: bool = False
) -> Comparison:
    """Compare two groups by each of `metrics`.

    If the runs are `interleaved`, those of the same round are pairs: they were measured side by side.
    Ratios are of pairs then, and so is the test, unless so few pairs cannot reach `SIGNIFICANT` with so many
    metrics: 7 pairs cannot with 4, but 7 runs against 7 can.
    """
    rounds, others = baseline.rounds, changed.rounds
    paired = interleaved and rounds is not None and others is not None and sorted(rounds) == sorted(others)
    if paired:
        baseline, changed = (_by_round(each) for each in (baseline, changed))

    # The rate of an open loop is given; asked for alone, it is tested all the same.
    given_rate = baseline.load.rate is not None and changed.load.rate is not None and len(metrics) > 1
    rows = [_row(find_metric(name), baseline, changed, paired) for name in metrics]
    tested = [row for row in rows if _is_testable(row) and not (row.metric.name == "rate" and given_rate)]
    counts = len(baseline.runs), len(changed.runs)
    by_pairs = paired and _smallest_p(*counts, paired=True) * len(tested) < SIGNIFICANT
    test = wilcoxon_p if by_pairs else mann_whitney_p
    adjusted = adjusted_by_holm([test(row.baseline, row.changed) for row in tested])
    p_values = dict(zip((row.metric.name for row in tested), adjusted, strict=True))
    floor = _smallest_p(*counts, paired=by_pairs) * len(tested)
    return Comparison(
        baseline=baseline,
        changed=changed,
        paired=paired,
        test="Wilcoxon" if by_pairs else "Mann-Whitney",
        rows=tuple(_judged(row, p_values.get(row.metric.name), floor) for row in rows),
    )


def compare_within(document: Document) -> list[Comparison]:
    """Compare the servers of one document that were measured in rounds, each with the first of its load."""
    first: dict[object, Group] = {}
    comparisons = []
    for group in groups(document):
        if group.rounds is None:
            continue
        load = replace(group.load, address="", server_backend="", server_engine="")
        baseline = first.setdefault((load, group.backend), group)
        if group is not baseline:
            comparisons.append(compare(baseline, group, interleaved=True))

    return comparisons


def compared_by(metric: Metric, comparison: Comparison) -> Row:
    """Return the comparison by one more `metric`. Its p-value is not adjusted: it is the only question."""
    [row] = compare(comparison.baseline, comparison.changed, [metric.name], interleaved=comparison.paired).rows
    return row


def _by_round(group: Group) -> Group:
    return replace(group, runs=tuple(sorted(group.runs, key=lambda run: run.round or 0)))


def _figures(metric: Metric, group: Group) -> Iterator[float]:
    for run in group.runs:
        value = metric.of(run)
        if value is not None:
            yield value


def _row(metric: Metric, baseline: Group, changed: Group, paired: bool) -> Row:
    one, other = tuple(_figures(metric, baseline)), tuple(_figures(metric, changed))
    row = Row(metric=metric, baseline=one, changed=other)
    if len(one) < len(baseline.runs) or len(other) < len(changed.runs) or min([*one, *other], default=0) <= 0:
        return row

    ratio = median_ratio(one, other, paired=paired)
    return replace(row, ratio=ratio) if 0 < min(ratio) <= max(ratio) < math.inf else row


def _is_testable(row: Row) -> bool:
    return row.ratio is not None and min(len(row.baseline), len(row.changed)) >= REPETITIONS_MIN


def _judged(row: Row, p: float | None, floor: float) -> Row:
    """Return `row` with its adjusted p-value and a verdict. `floor` is the smallest p-value that can be reached."""
    fewest = min(len(row.baseline), len(row.changed))
    if row.ratio is None:
        verdict = "not known for each run"
    elif fewest < REPETITIONS_MIN:
        verdict = f"no verdict: {REPETITIONS_MIN} runs of each are needed"
    elif p is None:
        verdict = "given by the load"
    elif floor >= SIGNIFICANT:
        verdict = f"no verdict: so few runs cannot reach p < {SIGNIFICANT:g}"
    elif p < SIGNIFICANT:
        # The test is of ranks, and may tell runs with equal medians apart.
        is_equal = row.ratio.estimate == 1
        verdict = "different: equal medians" if is_equal else "higher" if row.ratio.estimate > 1 else "lower"
    else:
        verdict = "no difference found"

    return replace(row, p=p, verdict=verdict)


def _smallest_p(one: int, other: int, *, paired: bool) -> float:
    return 2 / (2**one if paired else math.comb(one + other, one))
