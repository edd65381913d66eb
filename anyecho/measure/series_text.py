"""A series of runs as lines of text: a row per configuration, then the servers compared, metric by metric."""

from __future__ import annotations

__all__ = ("series_lines",)

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

from anyecho.measure.checks import checks, p_text, rate_text
from anyecho.measure.compare import Comparison, Group, Row, compare_within, groups
from anyecho.measure.comparison_text import interval_text
from anyecho.measure.metrics import COMPARED, find_metric
from anyecho.measure.options import PERCENTILES
from anyecho.measure.result import Document, RunResult
from anyecho.measure.text import common_text, document_lines, machine_text, percentile_name

_HEADS = {"rate": "msg/s", "lag": "lag p99", "cpu": "cpu/echo"}
#: Percentiles of the table by default.
_PERCENTILES = (50.0, 99.0)


def series_lines(document: Document, percentiles: Sequence[float] = PERCENTILES) -> list[str]:
    """Return the lines of a document: one run in full, or a row per configuration with medians over its runs."""
    if len(document.runs) < 2:
        return document_lines(document, percentiles)

    found = groups(document)
    if len(found) == 1:
        found = [replace(found[0], name="median")]
    width = max(len(group.name) for group in found)
    shown = map(percentile_name, _PERCENTILES if percentiles == PERCENTILES else dict.fromkeys(percentiles))
    columns = ["rate", *shown, "max", "lag", "cpu"]
    columns = [metric for metric in columns if any(_cell(metric, _good(group)) != "-" for group in found)]
    repeated = len(found) < len(document.runs)
    heads = ["runs"] * repeated + [*(_HEADS.get(metric, metric) for metric in columns), "wrong", "lost"]
    lines = [common_text([run.load for run in document.runs]), ""]
    lines.append(" " * width + "".join(f"{head:>10}" for head in heads))
    for group in found:
        lines += _row(f"{group.name:<{width}}", group, columns, repeated=repeated)
    lines.append("")
    by_baseline: dict[str, list[Comparison]] = defaultdict(list)
    for each in compare_within(document):
        by_baseline[each.baseline.name].append(each)
    for comparisons in by_baseline.values():
        lines += _comparison(comparisons, width)

    machine = machine_text(document.machine)
    return [*lines, f"  machine: {machine}"] if machine else lines


def _good(group: Group) -> list[RunResult]:
    return [run for run in group.runs if run.counts.verified]


def _row(name: str, group: Group, columns: Sequence[str], *, repeated: bool) -> Iterator[str]:
    good = _good(group)
    cells = [f"{len(good)}"] * repeated
    cells += [_cell(metric, good) for metric in columns]
    cells += [str(sum(getattr(run.counts, count) for run in group.runs)) for count in ("wrong", "lost")]
    if good:
        yield name + "".join(f"{cell:>10}" for cell in cells)
    for text, runs in _doubts(group).items():
        yield f"! {text}" + f" ({len(runs)} of {len(group.runs)} runs)" * repeated
    failed = [run for run in group.runs if not run.counts.verified]
    error = next((run.error for run in failed if run.error), "no reply was verified")
    if not good:
        yield f"{name}  failed: {error}"
    elif failed:
        yield f"! failed: {error} ({len(failed)} of {len(group.runs)} runs)"


def _cell(metric: str, runs: Sequence[RunResult]) -> str:
    found = find_metric(metric)
    values = [value for run in runs if (value := found.of(run)) is not None]
    if not values or len(values) < len(runs):
        return "-"

    return rate_text(median(values)).removesuffix("/s") if metric == "rate" else found.show(median(values))


def _doubts(group: Group) -> dict[str, list[RunResult]]:
    """Return the points that cast doubt on runs of `group`: the text of the first such run, and all of them."""
    found: dict[str, list[RunResult]] = defaultdict(list)
    texts: dict[str, str] = {}
    for run in group.runs:
        if not run.counts.verified and not run.interrupted:
            continue  # the line of the failed ones has the error
        for point in checks(run):
            if point.doubt:
                found[texts.setdefault(point.name, f"{point.name}: {point.text}")].append(run)

    return found


def _comparison(comparisons: Sequence[Comparison], width: int) -> Iterator[str]:
    """Yield a block per metric: each server, its ratio to the first, and whether there is a difference."""
    baseline = comparisons[0].baseline
    pairs = "by pairs of the same round, " if all(each.paired for each in comparisons) else ""
    yield f"ratio to {baseline.name}: {pairs}{comparisons[0].test} test, p adjusted for the metrics"
    for metric in COMPARED:
        rows = [row for each in comparisons for row in each.rows if row.metric.name == metric]
        if not any(row.ratio for row in rows):
            continue
        head = _HEADS.get(metric, metric)
        yield f"{head:<{width}}{'median':>10}{'ratio':>8}{'95% interval':>17}{'p':>8}  verdict"
        yield f"{baseline.name:<{width}}{_median(rows[0].metric.name, rows[0].baseline):>10}"
        for each, row in zip(comparisons, rows, strict=True):
            yield f"{each.changed.name:<{width}}{_ratio_cells(row)}"
        yield ""


def _ratio_cells(row: Row) -> str:
    ratio = f"{row.ratio.estimate:.3f}" if row.ratio else "-"
    interval = interval_text(row.ratio) if row.ratio and row.p is not None else "-"
    return f"{_median(row.metric.name, row.changed):>10}{ratio:>8}{interval:>17}{p_text(row.p):>8}  {row.verdict}"


def _median(metric: str, values: Sequence[float]) -> str:
    return find_metric(metric).show(median(values)) if values else "-"
