"""Charts over the time of a run: a heat map of latencies, and the replies per second."""

from __future__ import annotations

__all__ = ("heat_map", "throughput")

import math
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from anyecho.measure.charts import legend, tick_text, tip
from anyecho.measure.checks import duration_text, rate_text
from anyecho.measure.result import LEVEL_EDGES, RunResult, Second
from anyecho.measure.svg import Frame, Scale, element, linear_ticks, log_ticks, number, path

#: Columns of a chart; longer runs have several seconds in each.
_COLUMNS = 120
_SHADES = 7
_LEVELS = len(LEVEL_EDGES) + 1


def heat_map(run: RunResult) -> str:
    """Return the number of replies by second and latency, darker where there are more, with the medians and p99.

    There are seconds; if none of them has a reply, the text is empty.
    """
    width, seconds = _binned(run.per_second)
    used = [index for each in seconds for index, count in enumerate(each.levels[:_LEVELS]) if count]
    if not used:
        return ""

    frame = Frame(height=300)
    step = 10 ** (1 / 8)
    low, high = LEVEL_EDGES[0] * step ** (min(used) - 1), LEVEL_EDGES[0] * step ** (max(used) + 0.5)
    y = Scale(low, high, *frame.y, log=True)
    x = Scale(0, seconds[-1].start + width, *frame.x)
    thickness = y(low) - y(low * step)
    most = max(max(each.levels, default=0) for each in seconds)
    shades: list[list[str]] = [[] for _ in range(_SHADES)]
    for level in sorted(set(used)):
        middle = number(y(LEVEL_EDGES[0] * step ** (level - 0.5)))
        for shade, start, end in _stretches(seconds, level, most):
            shades[shade].append(f"M{number(x(start))} {middle}H{number(x(end + width))}")

    parts = [frame.vertical(y, log_ticks(low, high), tick_text), _time_axis(frame, x)]
    parts += [
        element("path", d="".join(cells), class_=f"s{index}", stroke_width=thickness)
        for index, cells in enumerate(shades)
        if cells
    ]
    names = []
    for name, kind in (("p50", "q q0"), ("p99", "q q1")):
        values = [(each.start + width / 2, getattr(each, name)) for each in seconds]
        known = [(x(time), y(value * 1e9)) for time, value in values if value is not None]
        if len(known) > 1:
            parts += [path(known, class_="halo"), path(known, class_=kind)]
            names.append((name, kind))
    parts += [_second_tip(each, width, x, frame) for each in seconds]
    keys = "".join(f'<i class="s{index}"></i>' for index in range(_SHADES))
    return legend(names, f"<span>1 {keys} {most} replies</span>") + frame.drawing("Latency over time", *parts)


def _stretches(seconds: Sequence[Second], level: int, most: int) -> Iterator[tuple[int, float, float]]:
    """Yield (shade, start of the first, start of the last) for consecutive seconds of the same shade at `level`."""
    shade, start, end = -1, 0.0, 0.0
    for each in seconds:
        count = each.levels[level] if level < len(each.levels) else 0
        new = (
            -1 if not count else int(math.log(count) / math.log(most) * (_SHADES - 1)) if most > 1 else _SHADES - 1
        )
        if new != shade:
            if shade >= 0:
                yield shade, start, end
            shade, start = new, each.start
        end = each.start
    if shade >= 0:
        yield shade, start, end


def _second_tip(each: Second, width: int, x: Scale, frame: Frame) -> str:
    end = each.start + width
    lines = [f"{each.start:g} to {end:g} s", f"{each.verified} replies"]
    lines += [
        f"{name} {duration_text(value)}"
        for name, value in (("p50", each.p50), ("p99", each.p99))
        if value is not None
    ]
    return tip(x(each.start), x(end), frame, "\n".join(lines))


def _time_axis(frame: Frame, x: Scale) -> str:
    return frame.horizontal(x, linear_ticks(x.high, 8), lambda value: f"{value:g}", "seconds")


def throughput(run: RunResult) -> str:
    """Return the verified replies of each second as bars, with the rate that was asked for. There are seconds."""
    width, seconds = _binned(run.per_second)
    frame = Frame(height=170)
    asked = run.generator.asked_rate
    # The last column of several seconds may have fewer.
    end = run.per_second[-1].start + 1
    rates = [each.verified / max(min(width, end - each.start), 1) for each in seconds]
    high = max([*rates, asked or 0.0, 1.0]) * 1.08
    x, y = Scale(0, seconds[-1].start + width, *frame.x), Scale(0, high, *frame.y)
    bars = "".join(
        _bar(x(each.start) + 0.6, x(each.start + width) - 0.6, y(0), y(rate))
        for each, rate in zip(seconds, rates, strict=True)
    )
    parts = [frame.vertical(y, linear_ticks(high, 3), lambda value: f"{value:g}"), _time_axis(frame, x)]
    parts.append(element("path", d=bars, class_="bar"))
    if asked is not None:
        parts.append(path([(frame.x[0], y(asked)), (frame.x[1], y(asked))], class_="q q1"))
    parts += [_second_tip(each, width, x, frame) for each in seconds]
    names = [(f"asked: {rate_text(asked)}", "q q1")] if asked is not None else []
    return legend(names) + frame.drawing("Replies per second", *parts)


def _bar(left: float, right: float, bottom: float, top: float) -> str:
    return f"M{number(left)} {number(bottom)}V{number(top)}H{number(right)}V{number(bottom)}z"


def _binned(seconds: Sequence[Second]) -> tuple[int, list[Second]]:
    """Return the seconds per column, and the columns: at most 120 of equal width."""
    width = math.ceil((seconds[-1].start + 1) / _COLUMNS)
    by_column: dict[int, list[Second]] = {}
    for each in seconds:
        by_column.setdefault(int(each.start // width), []).append(each)
    if width == 1:
        return 1, list(seconds)

    return width, [
        Second(
            start=float(column * width),
            verified=sum(each.verified for each in group),
            bytes=sum(each.bytes for each in group),
            levels=tuple(map(sum, zip_longest(*(each.levels for each in group), fillvalue=0))),
        )
        for column, group in sorted(by_column.items())
    ]
