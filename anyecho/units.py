"""Parse and format durations, sizes and rates, without loss.

``parse_x(format_x(value)) == value`` for every value, with the shortest text that parses to it. Durations are
float seconds, sizes int bytes, rates float per second. ``k M G`` are powers of 1000, ``Ki Mi Gi`` of 1024.
"""

from __future__ import annotations

__all__ = (
    "OFF",
    "Rate",
    "Seconds",
    "Size",
    "Unit",
    "counted",
    "format_duration",
    "format_rate",
    "format_size",
    "or_infinite",
    "parse_duration",
    "parse_rate",
    "parse_size",
)

import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from anyecho.errors import UnitError

#: The exponent is bounded because a Fraction of 1e999999999 would fill the memory before it failed.
_QUANTITY = re.compile(r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,3})?) *(?P<unit>[a-z]*)", re.I | re.A)
#: int() rejects more than 4300 digits; the largest float has 309.
_LENGTH_MAX = 1000

_DURATIONS = {
    "us": Fraction(1, 10**6),
    "ms": Fraction(1, 10**3),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
}
_THOUSANDS = {"": Fraction(1), "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9)}
_SIZES = _THOUSANDS | {"KiB": Fraction(2**10), "MiB": Fraction(2**20), "GiB": Fraction(2**30)}
_SIZE_ALIASES = {"b": "", "kb": "k", "mb": "m", "gb": "g", "ki": "kib", "mi": "mib", "gi": "gib"}

#: The text for "no limit".
OFF = "off"


def counted(number: int, noun: str) -> str:
    """Return ``1 message``, ``2 messages``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def parse_duration(text: str) -> float:
    """Return the seconds of ``1.5``, ``250ms``, ``2m``, ``1h``, ``1d``; ``off`` is infinite. Raises `UnitError`."""
    if text == OFF:
        return math.inf

    hint = "like 250ms, 1.5s or 2m (off is no limit)"
    return _to_float(text, _parse(text, "duration", _DURATIONS, {"": "s", "min": "m"}, hint))


def format_duration(seconds: float) -> str:
    """Return the shortest text that `parse_duration` reads as exactly `seconds` (>= 0)."""
    return OFF if seconds == math.inf else _shortest(seconds, _DURATIONS, parse_duration)


def parse_size(text: str) -> int:
    """Return the bytes of ``64``, ``1k`` (1000), ``64KiB`` (65536), ``1.5MiB``. Raises `UnitError`."""
    hint = "a whole number of bytes like 64, 1k or 64KiB"
    size = _parse(text, "size", _SIZES, _SIZE_ALIASES, hint)
    if size.denominator != 1:
        raise UnitError(f"{text!r} is not a size: write {hint}")

    return int(size)


def format_size(size: int) -> str:
    """Return the shortest text without a decimal point that `parse_size` reads as exactly `size` (>= 0)."""
    if size < 0:
        raise UnitError(f"{size} is not a size: it must be 0 or more")

    texts = [f"{size / scale}{unit}" for unit, scale in _SIZES.items() if (size / scale).denominator == 1]
    return min(texts, key=lambda text: (len(text), text.isdigit()))  # 128KiB rather than 131072


def parse_rate(text: str) -> float:
    """Return the events/s of ``50``, ``10k``, ``50/s``, ``3k/1m``; ``off`` is infinite. Raises `UnitError`."""
    if text == OFF:
        return math.inf

    count, slash, period = text.partition("/")
    try:
        rate = _parse(count, "rate", _THOUSANDS, {}, "")
        if slash:
            # "50/s" is "50/1s".
            period = period if period[:1].isdigit() or period[:1] == "." else "1" + period
            rate /= _parse(period, "rate", _DURATIONS, {"min": "m"}, "")
    except UnitError:
        raise UnitError(f"{text[:40]!r} is not a rate: write like 10k or 50/1s (off is no limit)") from None
    except ZeroDivisionError:
        raise UnitError(f"{text!r} is not a rate: its period is 0") from None

    return _to_float(text, rate)


def format_rate(rate: float) -> str:
    """Return the shortest text that `parse_rate` reads as exactly `rate` (>= 0)."""
    return OFF if rate == math.inf else _shortest(rate, _THOUSANDS, parse_rate)


def or_infinite(limit: float | None) -> float:
    """Return `limit`, the value of an option; infinite if it is None, which is no limit."""
    return math.inf if limit is None else limit


@dataclass(frozen=True)
class Unit:
    """How to parse and format a quantity; stands in the annotation of an option."""

    name: str
    parse: Callable[[str], float]
    format: Callable[[Any], str]


Seconds = Annotated[float, Unit("DURATION", parse_duration, format_duration)]
Size = Annotated[int, Unit("SIZE", parse_size, format_size)]
Rate = Annotated[float, Unit("RATE", parse_rate, format_rate)]


def _parse(text: str, what: str, scales: Mapping[str, Fraction], aliases: Mapping[str, str], hint: str) -> Fraction:
    match = _QUANTITY.fullmatch(text.strip()) if len(text) <= _LENGTH_MAX else None
    known = {unit.lower(): scale for unit, scale in scales.items()}
    unit = match["unit"].lower() if match else ""
    unit = aliases.get(unit, unit)
    if match is None or unit not in known:
        raise UnitError(f"{text[:40]!r} is not a {what}: write {hint}")

    return Fraction(match["number"]) * known[unit]


def _to_float(text: str, value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        raise UnitError(f"{text!r} is too large") from None


def _shortest(value: float, scales: Mapping[str, Fraction], parse: Callable[[str], float]) -> str:
    if not value >= 0:
        raise UnitError(f"{value!r} is not a quantity: it must be 0 or more")

    exact = []
    for unit, scale in scales.items():
        # The division rounds and may overflow, so not every unit gives the exact value; scale 1 always does.
        with suppress(OverflowError, UnitError):
            text = repr(float(Fraction(abs(value)) / scale)).removesuffix(".0") + unit
            if parse(text) == value:
                exact.append(text)

    # 200ms rather than 0.2s.
    return min(exact, key=lambda text: (len(text) + text.startswith("0."), text.startswith("0.")))
