"""Parts of charts as SVG text: elements, scales, axes, paths. Colours are classes of the page's style sheet."""

from __future__ import annotations

__all__ = ("Frame", "Scale", "element", "linear_ticks", "log_ticks", "number", "path", "text")

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape


def number(value: float) -> str:
    """Return a coordinate with one decimal at most."""
    return (
        f"{value:.1f}".removesuffix(".0").replace("-0", "0")
        if abs(value) < 0.05
        else f"{value:.1f}".removesuffix(".0")
    )


def element(name: str, *children: str, **attributes: str | float) -> str:
    """Return an element; ``_`` at the end of an attribute is dropped, within it, it is a hyphen."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value) if isinstance(value, str) else number(value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{''.join(children)}</{name}>" if children else f"<{name}{written}/>"


def text(content: str, x: float, y: float, **attributes: str | float) -> str:
    return element("text", escape(content), x=x, y=y, **attributes)


def path(points: Iterable[tuple[float, float]], **attributes: str | float) -> str:
    """Return a line through `points`."""
    return element("path", d="M" + "L".join(f"{number(x)} {number(y)}" for x, y in points), **attributes)


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` onto coordinates from `start` to `end`; on a log scale `low` is above 0."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        low, high, value = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def linear_ticks(high: float, count: int = 5) -> list[float]:
    """Return about `count` round values from 0 to `high`."""
    raw = max(high, 1e-9) / count
    scale = 10 ** math.floor(math.log10(raw))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= raw * 0.999)
    return [step * index for index in range(int(high / step + 1e-6) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the values 1, 2 and 5 of each decade between `low` and `high`; only 1 if these are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    return [each for each in ticks if low * 0.999 <= each <= high * 1.001]


@dataclass(frozen=True)
class Frame:
    """The plotting area of a chart in a drawing of `width` by `height`, with room for labels around it."""

    width: float = 860
    height: float = 300
    left: float = 64
    right: float = 18
    top: float = 12
    bottom: float = 44

    @property
    def x(self) -> tuple[float, float]:
        return self.left, self.width - self.right

    @property
    def y(self) -> tuple[float, float]:
        """The coordinates of the lowest and the highest value."""
        return self.height - self.bottom, self.top

    def horizontal(self, scale: Scale, ticks: Sequence[float], label: Callable[[float], str], title: str) -> str:
        """Return the axis below the plotting area."""
        low, high = self.y
        parts = [path([(scale(each), low), (scale(each), high)], class_="grid") for each in ticks]
        for each in ticks:
            near_end = scale(each) > self.width - self.right - 20
            anchor = "end" if near_end else "middle"
            parts.append(text(label(each), scale(each) + (4 if near_end else 0), low + 17, text_anchor=anchor))
        parts.append(
            text(title, (self.left + self.width - self.right) / 2, low + 36, text_anchor="middle", class_="t")
        )
        return "".join(parts)

    def vertical(self, scale: Scale, ticks: Sequence[float], label: Callable[[float], str]) -> str:
        """Return the axis on the left."""
        start, end = self.x
        return "".join(
            path([(start, scale(each)), (end, scale(each))], class_="grid")
            + text(label(each), start - 8, scale(each) + 4, text_anchor="end")
            for each in ticks
        )

    def drawing(self, label: str, *parts: str) -> str:
        """Return the whole drawing; `label` describes it for readers that do not see it."""
        box = f"0 0 {number(self.width)} {number(self.height)}"
        return element("svg", *parts, viewBox=box, role="img", aria_label=label)
