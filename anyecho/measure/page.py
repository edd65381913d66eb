"""One self-contained HTML page for results: charts in SVG, figures in tables; no script is needed to read it."""

from __future__ import annotations

__all__ = ("page",)

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from statistics import median

from anyecho.measure.charts import ranges, ratios, spectrum
from anyecho.measure.checks import Check, checks, p_text, rate_text
from anyecho.measure.compare import Comparison, Group, groups
from anyecho.measure.comparison_text import interval_text
from anyecho.measure.histogram import Histogram
from anyecho.measure.options import PERCENTILES
from anyecho.measure.parts import PART_HEADS, part_rows
from anyecho.measure.result import Document, RunResult
from anyecho.measure.text import common_text, labels, latency_text, machine_text, percentile_name
from anyecho.measure.time_charts import heat_map, throughput

#: Bytes of the page without its frame, which takes 7 KB.
_SIZE_MAX = 185_000
#: Runs of a file with charts over time; all runs are in its table.
_CHARTS_MAX = 4
#: Of several runs, shorter ones have no charts over time.
_SECONDS_MIN = 5
#: Rows of a table or a chart, and lines of a spectrum.
_ROWS_MAX = 100
_LINES_MAX = 8

_SCRIPT = """\
const t=document.getElementById("tip");
addEventListener("mousemove",e=>{const d=e.target.dataset&&e.target.dataset.t;t.hidden=!d;if(!d)return;
t.textContent=d;t.style.top=e.pageY+16+"px";
t.style.left=Math.min(e.pageX+16,scrollX+document.documentElement.clientWidth-t.offsetWidth-8)+"px"})"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(documents: Sequence[tuple[str, Document]], comparisons: Sequence[Comparison] = ()) -> str:
    """Return the page of `documents`, each with its name, and of `comparisons` between them.

    It stays below 200 KB: parts that do not fit are left out, and their number is stated.
    """
    title = documents[0][0] if len(documents) == 1 else f"{documents[0][0]} and {len(documents) - 1} more"
    compared = [_comparison(each, len(documents) > 1) for each in comparisons]
    body = _fitting([*_head(documents), *compared, *_parts(documents)])
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">
<title>anyecho: {escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<main>
{chr(10).join(body)}
</main>
<div id="tip" hidden></div>
<script>
{_SCRIPT}
</script>
</body>
</html>
"""


def _fitting(parts: Iterable[str]) -> list[str]:
    fitting, size, left_out = [], 0, 0
    for part in parts:
        length = len(part.encode(errors="replace"))
        if size + length > _SIZE_MAX:
            left_out += 1
        else:
            size += length
            fitting.append(part)
    if left_out:
        fitting.append(f'<p class="bad">{left_out} parts are left out, to keep this page small.</p>')

    return fitting


def _parts(documents: Sequence[tuple[str, Document]]) -> Iterator[str]:
    """Yield the parts of the page, the most important ones of every document first."""
    several = len(documents) > 1
    for number, part in enumerate((_latency, _table_of_runs, _machine)):
        for name, document in documents:
            if document.runs:
                yield part(f": {escape(name)}" if several else "", document)
        if number == 0:
            for name, document in documents:
                yield from _runs(f": {escape(name)}" if several else "", document)


def _head(documents: Sequence[tuple[str, Document]]) -> Iterator[str]:
    runs = [run for _, document in documents for run in document.runs]
    if not runs:
        yield "<h1>no runs</h1>"
        return

    count = "" if len(runs) == 1 else f", {len(runs)} runs"
    started = datetime.fromtimestamp(min(run.started_at for run in runs), UTC)
    yield (
        f"<h1>{escape(common_text([run.load for run in runs]))}</h1>"
        f'<p class="soft">anyecho {escape(documents[0][1].version)}, {started:%Y-%m-%d %H:%M:%S} UTC{count}</p>'
    )


def _latency(of: str, document: Document) -> str:
    figures = _figures(document.runs) if len(document.runs) == 1 else ""
    chart = ranges([*zip(labels(document.runs), document.runs, strict=True)][:_ROWS_MAX]) if not figures else ""
    return f"<h2>Latency{of}</h2>{figures}{_spectrum(groups(document))}{chart}"


def _runs(of: str, document: Document) -> Iterator[str]:
    """Yield the charts over time and the points of each run."""
    labelled = [*zip(labels(document.runs), document.runs, strict=True)]
    for label, run in labelled[:_CHARTS_MAX]:
        which = f": {escape(label)}" if len(document.runs) > 1 else ""
        if len(run.per_second) >= (_SECONDS_MIN if len(document.runs) > 1 else 1):
            yield f"<h2>Latency over time{of}{which}</h2>{heat_map(run)}"
            yield f"<h2>Replies per second{of}{which}</h2>{throughput(run)}"
        if run.parts:
            yield f"<h2>Generators{of}{which}</h2>{_table(PART_HEADS, list(part_rows(run.parts)))}"
        yield f"<h2>Checks{of}{which}</h2>{_points(checks(run))}"
    if rest := labelled[_CHARTS_MAX:]:
        doubts = [
            point._replace(name=f"{label}: {point.name}")
            for label, run in rest[:_ROWS_MAX]
            for point in checks(run)
            if point.doubt
        ]
        note = f"Charts over time and all checks are of the first {_CHARTS_MAX} of {len(labelled)} runs."
        yield f'<p class="soft">{note}</p>{_points(doubts)}'


def _table_of_runs(of: str, document: Document) -> str:
    if len(document.runs) == 1:
        return ""

    rest = len(document.runs) - _ROWS_MAX
    more = f'<p class="soft">{rest} more runs are not shown.</p>' if rest > 0 else ""
    return f"<h2>Runs{of}</h2>{_figures(document.runs[:_ROWS_MAX])}{more}"


def _spectrum(found: Sequence[Group]) -> str:
    """Return the spectrum of one configuration with its lag, or the corrected latencies of several."""
    if len(found) > 1:
        more = f'<p class="soft">The first {_LINES_MAX} of {len(found)} are drawn.</p>' * (len(found) > _LINES_MAX)
        return spectrum([(group.name, _merged(group, "latency")) for group in found[:_LINES_MAX]]) + more

    [group] = found
    latency, uncorrected, lag = (_merged(group, name) for name in ("latency", "uncorrected", "lag"))
    name = "latency" if group.load.rate is None else "corrected"
    if uncorrected == latency:
        return spectrum([(name if group.load.rate is None else "corrected and uncorrected", latency), ("lag", lag)])

    return spectrum([(name, latency), ("uncorrected", uncorrected), ("lag", lag)])


def _merged(group: Group, name: str) -> Histogram:
    return Histogram.merged(getattr(run, name) for run in group.runs)


def _figures(runs: Sequence[RunResult]) -> str:
    heads = ["", "msg/s", *map(percentile_name, PERCENTILES), "max", "wrong", "lost"]
    rows = []
    for label, run in zip(labels(runs), runs, strict=True):
        step = run.generator.clock.step_ns
        kinds = [(label, run.latency)]
        if len(runs) == 1:
            kinds = [("latency" if run.load.rate is None else "corrected", run.latency)]
            if run.uncorrected != run.latency:
                kinds.append(("uncorrected", run.uncorrected))
            if run.lag.count:
                kinds.append(("lag", run.lag))
        for number, (name, histogram) in enumerate(kinds):
            cells = [latency_text(histogram.quantile(each / 100), step) for each in PERCENTILES]
            cells.append(latency_text(histogram.max if histogram.count else None, step))
            counts = [str(run.counts.wrong), str(run.counts.lost)] if number == 0 else ["", ""]
            rate = rate_text(run.rate).removesuffix("/s") if number == 0 else ""
            rows.append([name, rate, *cells, *counts])

    return _table(heads, rows)


def _points(points: Iterable[Check]) -> str:
    rows = []
    for point in points:
        kind, mark = (' class="bad"', "! ") if point.doubt else ("", "")
        rows.append(f"<tr{kind}><th>{mark}{escape(point.name)}</th><td>{escape(point.text)}</td></tr>")

    return f'<table class="points">{"".join(rows)}</table>'


def _comparison(comparison: Comparison, several: bool) -> str:
    """Return the ratios; between `several` documents also the spectra, which one document shows together anyway."""
    baseline, changed = comparison.baseline, comparison.changed
    rows = []
    for row in comparison.rows:
        if row.ratio is not None:
            values = [row.metric.show(median(side)) for side in (row.baseline, row.changed)]
            interval = interval_text(row.ratio) if row.p is not None else "-"
            cells = [f"{row.ratio.estimate:.3f}", interval, p_text(row.p), row.verdict]
            rows.append([row.metric.name, *values, *cells])
    paired = ", by pairs of the same round" * comparison.paired
    return (
        f"<h2>{escape(changed.name)} against {escape(baseline.name)}</h2>"
        f'<p class="soft">{len(changed.runs)} runs against {len(baseline.runs)}{paired}</p>'
        f"{ratios(comparison)}"
        + _table(["", "baseline", "changed", "ratio", "95% interval", "p", "verdict"], rows)
        + (spectrum([(group.name, _merged(group, "latency")) for group in (baseline, changed)]) if several else "")
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def _machine(of: str, document: Document) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in document.versions.items())
    return (
        f"<h2>Machine{of}</h2><p>{escape(machine_text(document.machine))}</p>"
        f'<p class="soft">{escape(versions)}</p><p><code>{escape(" ".join(document.command))}</code></p>'
    )
