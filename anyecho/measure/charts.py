"""Charts of results: percentile spectrum, runs side by side, ratios of comparisons."""

from __future__ import annotations

__all__ = ("legend", "ranges", "ratios", "spectrum", "tick_text", "tip")

import math
from collections.abc import Iterator, Sequence
from html import escape

from anyecho.measure.checks import duration_text
from anyecho.measure.compare import Comparison, Row
from anyecho.measure.comparison_text import interval_text
from anyecho.measure.histogram import MIN_BEYOND, Histogram
from anyecho.measure.result import RunResult
from anyecho.measure.statistics import Interval
from anyecho.measure.svg import Frame, Scale, element, log_ticks, path, text

#: The smallest duration on a log axis, in nanoseconds.
_FLOOR = 100.0
_KEY = ((1.0, 4.0), (25.0, 4.0))


def legend(lines: Sequence[tuple[str, str]], extra: str = "") -> str:
    """Return a row of names, each with a line of its class, and `extra` at its end."""
    keys = (
        '<span><svg viewBox="0 0 26 8" class="key" aria-hidden="true">'
        f"{path(_KEY, class_=kind)}</svg>{escape(name)}</span>"
        for name, kind in lines
    )
    return f'<p class="legend">{"".join(keys)}{extra}</p>' if lines or extra else ""


def tick_text(nanoseconds: float) -> str:
    """Return a round duration as short as it is: 200us, not 200.0us."""
    units = ((1e9, "s"), (1e6, "ms"), (1e3, "us"))
    scale, unit = next((each for each in units if nanoseconds >= each[0] * 0.999), (1.0, "ns"))
    return f"{nanoseconds / scale:g}{unit}"


def spectrum(lines: Sequence[tuple[str, Histogram]]) -> str:
    """Return the latency of every percentile, a line for each histogram, on log axes."""
    lines = [(name, histogram) for name, histogram in lines if histogram.count]
    if not lines:
        return ""

    frame = Frame(height=360)
    longest = max(histogram.count for _, histogram in lines)
    x = Scale(1, max(longest, 10), *frame.x, log=True)
    high = max(max(histogram.max for _, histogram in lines), _FLOOR * 10)
    low = max(min(histogram.value_at(0.01) for _, histogram in lines) * 0.8, _FLOOR)
    y = Scale(low, high * 1.3, *frame.y, log=True)
    decades = [10**power for power in range(int(math.log10(x.high) + 1e-9) + 1)]
    ticks = sorted({1.0, 2.0, *map(float, decades)})
    known = longest / MIN_BEYOND
    parts = [
        element(
            "rect",
            x=x(known),
            y=frame.top,
            width=frame.x[1] - x(known),
            height=frame.y[0] - frame.top,
            class_="few",
        ),
        frame.horizontal(x, ticks, lambda value: f"{100 - 100 / value:.10g}%", "percentile"),
        frame.vertical(y, log_ticks(y.low, y.high), tick_text),
        text(f"fewer than {MIN_BEYOND} samples", frame.x[1] - 6, frame.y[0] - 8, text_anchor="end", class_="t"),
    ]
    for number_, (_, histogram) in enumerate(lines):
        points = [
            (x(1 / (1 - level) if level < 1 else histogram.count), y(value))
            for level, value, _ in histogram.spectrum()
        ]
        parts.append(path(points, class_=f"l l{number_}"))
    parts += _spectrum_tips(lines, x, frame)
    names = [(name, f"l l{index}") for index, (name, _) in enumerate(lines)]
    return legend(names) + frame.drawing("Latency by percentile", *parts)


def _spectrum_tips(lines: Sequence[tuple[str, Histogram]], x: Scale, frame: Frame) -> Iterator[str]:
    levels = [
        level for level, _, _ in max((histogram for _, histogram in lines), key=lambda each: each.count).spectrum(3)
    ]
    edges = [x(1 / (1 - level)) for level in levels if level < 1] + [frame.x[1]]
    for level, start, end in zip(levels, edges, edges[1:], strict=False):
        values = [f"{name} {duration_text(histogram.value_at(level) / 1e9)}" for name, histogram in lines]
        yield tip(start, end, frame, f"p{100 * level:.8g}\n" + "\n".join(values))


def tip(start: float, end: float, frame: Frame, content: str) -> str:
    """Return an invisible column that shows `content` while the pointer is on it."""
    return element(
        "rect", x=start, y=frame.top, width=end - start, height=frame.y[0] - frame.top, class_="h", data_t=content
    )


def ranges(rows: Sequence[tuple[str, RunResult]]) -> str:
    """Return a row for each run: the median, p99 (if enough samples are beyond it) and maximum of its latency."""
    rows = [(name, run) for name, run in rows if run.latency.count]
    if not rows:
        return ""

    left = _label_width([name for name, _ in rows])
    frame = Frame(height=58 + 24 * len(rows), left=left)
    low = min(run.latency.value_at(0.5) for _, run in rows) * 0.8
    x = Scale(max(low, _FLOOR), max(run.latency.max for _, run in rows) * 1.1, *frame.x, log=True)
    parts = [frame.horizontal(x, log_ticks(x.low, x.high), tick_text, "latency: median, p99, maximum")]
    for index, (name, run) in enumerate(rows):
        middle = frame.top + 24 * index + 14
        median, p99, longest = run.latency.value_at(0.5), run.latency.quantile(0.99), run.latency.max
        values = [("p50", median), ("p99", p99), ("max", longest)]
        shown = f"{name}\n" + "\n".join(
            f"{key} {'-' if value is None else duration_text(value / 1e9)}" for key, value in values
        )
        parts += [
            text(_shortened(name, left), left - 10, middle + 4, text_anchor="end"),
            path([(x(median), middle), (x(longest), middle)], class_="thin"),
            path([(x(median), middle), (x(median if p99 is None else p99), middle)], class_="thick"),
            element("circle", cx=x(median), cy=middle, r=4.5, class_="dot"),
            path([(x(longest), middle - 5), (x(longest), middle + 5)], class_="thin"),
            element("rect", x=0, y=middle - 12, width=frame.width, height=24, class_="h", data_t=shown),
        ]

    return frame.drawing("Latency of each run", *parts)


def ratios(comparison: Comparison) -> str:
    """Return a row per metric: the ratio of the medians, with its interval."""
    rows = [(row, row.ratio) for row in comparison.rows if row.ratio is not None]
    if not rows:
        return ""

    frame = Frame(height=58 + 28 * len(rows), right=230)
    bounds = [bound for _, ratio in rows for bound in (ratio.low, ratio.high)]
    reach = min(max(max(bounds), 1 / min(bounds), 1.05), 1e6) ** 1.15
    x = Scale(1 / reach, reach, *frame.x, log=True)
    low, high = frame.y
    ticks = [
        each for each in (0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.25, 2, 5, 10) if 1 / reach <= each <= reach
    ]
    wide = reach > 1.8
    ticks = [each for each in ticks if not wide or each in (0.1, 0.2, 0.5, 1, 2, 5, 10)]
    parts = [frame.horizontal(x, ticks, lambda value: f"{value:g}", "ratio to the baseline")]
    parts.append(path([(x(1), low), (x(1), high)], class_="one"))
    for index, (row, ratio) in enumerate(rows):
        parts += _ratio_row(row, ratio, frame.top + 28 * index + 16, x, frame)

    return frame.drawing("Ratio to the baseline, with 95 % intervals", *parts)


def _ratio_row(row: Row, ratio: Interval, middle: float, x: Scale, frame: Frame) -> Iterator[str]:
    kind = "different" if row.different else "same"
    yield text(row.metric.name, frame.left - 10, middle + 4, text_anchor="end")
    if row.p is not None:
        yield path([(x(ratio.low), middle), (x(ratio.high), middle)], class_=f"thick {kind}")
    yield element("circle", cx=x(ratio.estimate), cy=middle, r=5, class_=f"dot {kind}")
    yield text(f"{ratio.estimate:.3f}", frame.x[1] + 14, middle + 4)
    yield text(row.verdict.partition(":")[0], frame.x[1] + 62, middle + 4, class_="t")
    shown = f"{row.metric.name} {ratio.estimate:.3f}\n{interval_text(ratio)}\n{row.verdict}"
    yield element("rect", x=0, y=middle - 14, width=frame.width, height=28, class_="h", data_t=shown)


def _label_width(names: Sequence[str]) -> float:
    return min(max(max(map(len, names)) * 6.6 + 20, 64), 340)


def _shortened(name: str, width: float) -> str:
    room = int((width - 20) / 6.6)
    return name if len(name) <= room else f"{name[: room - 1]}…"
