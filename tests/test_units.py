"""Durations, sizes and rates: parsing, formatting, and the round trip."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anyecho.errors import UnitError
from anyecho.units import (
    Rate,
    Seconds,
    Size,
    Unit,
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)

#: A deadline would measure the machine, not the code.
no_deadline = settings(deadline=None)

quantities = st.floats(min_value=0)
sizes = st.integers(min_value=0) | st.builds(
    lambda count, scale: count * scale,
    st.integers(min_value=0, max_value=10**6),
    st.sampled_from([10**3, 10**6, 10**9, 2**10, 2**20, 2**30]),
)
numbers = st.from_regex(r"(\d{0,5}\.?\d{1,5})(e[+-]?\d{1,3})?", fullmatch=True, alphabet="0123456789.e+-")
units = st.sampled_from(["", "us", "ms", "s", "m", "min", "h", "d", "k", "M", "G", "B", "KiB", "mib", "Gi", "x"])
#: Mostly nearly valid, because arbitrary text is almost never valid.
texts = st.text(st.characters()) | st.builds("{}{}".format, numbers, units)
rates = texts | st.builds("{}/{}".format, texts, texts)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1.5", 1.5),
        ("250ms", 0.25),
        ("1us", 1e-6),
        (".5s", 0.5),
        ("3.s", 3.0),
        ("2m", 120.0),
        ("2min", 120.0),
        ("1h", 3600.0),
        ("1d", 86400.0),
        ("1e3ms", 1.0),
        ("1E-3 S", 0.001),
        ("0", 0.0),
        ("off", math.inf),
    ],
)
def test_a_duration_is_read_as_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("64", 64),
        ("64B", 64),
        ("1k", 1000),
        ("1kB", 1000),
        ("64KiB", 65536),
        ("64Ki", 65536),
        ("1Mi", 2**20),
        ("1Gi", 2**30),
        ("1MB", 10**6),
        ("1gb", 10**9),
        ("64 kib", 65536),
        ("1.5MiB", 1572864),
        ("1.5M", 1500000),
        ("2G", 2 * 10**9),
        ("2GiB", 2 * 2**30),
        ("1e6", 10**6),
        ("1e-1k", 100),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_a_size_is_read_as_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert type(parse_size(text)) is int


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("0", 0.0),
        ("50", 50.0),
        ("10k", 10_000.0),
        ("1.5M", 1_500_000.0),
        ("50/s", 50.0),
        ("50/1s", 50.0),
        ("3k/1m", 50.0),
        ("6/min", 0.1),
        ("1/500ms", 2.0),
        ("1/.5s", 2.0),
        ("off", math.inf),
    ],
)
def test_a_rate_is_read_as_events_per_second(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (1e-6, "1us"),
        (0.0015, "1.5ms"),
        (0.25, "250ms"),
        (1.5, "1.5s"),
        (60.0, "1m"),
        (61.0, "61s"),
        (90.0, "90s"),
        (5400.0, "90m"),
        (86400.0, "1d"),
        (math.inf, "off"),
    ],
)
def test_a_duration_is_written_in_the_unit_that_makes_it_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1k"),
        (1001, "1001"),
        (3 * 2**20, "3MiB"),
        (2**20, "1MiB"),
        (10**6, "1M"),
        (10**9, "1G"),
        (2**30, "1GiB"),
    ],
)
def test_a_size_is_written_in_the_unit_that_makes_it_short(size: int, text: str) -> None:
    assert format_size(size) == text


def test_a_negative_size_cannot_be_written() -> None:
    with pytest.raises(UnitError, match=r"^-1 is not a size: it must be 0 or more$"):
        format_size(-1)


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.0, "0"), (0.5, "0.5"), (50.0, "50"), (1500.0, "1500"), (10_000.0, "10k"), (2e6, "2M"), (math.inf, "off")],
)
def test_a_rate_is_written_in_the_unit_that_makes_it_short(rate: float, text: str) -> None:
    assert format_rate(rate) == text


@no_deadline
@given(quantities)
@example(math.inf)
@example(-0.0)
@example(sys.float_info.max)
@example(5e-324)
def test_every_duration_survives_the_round_trip(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@no_deadline
@given(quantities)
@example(math.inf)
@example(-0.0)
@example(sys.float_info.max)
@example(5e-324)
def test_every_rate_survives_the_round_trip(rate: float) -> None:
    assert parse_rate(format_rate(rate)) == rate


@no_deadline
@given(sizes)
def test_every_size_survives_the_round_trip(size: int) -> None:
    assert parse_size(format_size(size)) == size


@no_deadline
@given(st.integers(min_value=0))
def test_a_quantity_is_rounded_once(count: int) -> None:
    """An int divided by an int is the float nearest to their quotient, whatever their sizes."""
    assert parse_duration(f"{count}us") == count / 10**6
    assert parse_duration(f"{count}d") == float(count * 86400)
    assert parse_rate(f"{count}k/7h") == count * 1000 / 25200


@pytest.mark.parametrize(
    ("parse", "form", "texts"),
    [
        (parse_duration, format_duration, texts),
        (parse_size, format_size, texts),
        (parse_rate, format_rate, rates),
    ],
    ids=["duration", "size", "rate"],
)
@no_deadline
@given(data=st.data())
def test_any_text_is_a_quantity_or_an_error_of_one_line(
    parse: Callable[[str], float], form: Callable[[Any], str], texts: st.SearchStrategy[str], data: st.DataObject
) -> None:
    text = data.draw(texts)
    try:
        value = parse(text)
    except UnitError as exc:
        message = str(exc)
    else:
        assert value >= 0
        assert parse(form(value)) == value
        return

    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("parse", [parse_duration, parse_size, parse_rate])
@pytest.mark.parametrize(
    "text", ["", " ", "s", ".", "-1", "+1", "1,5", "1_000", "1 2", "1.5.2", "nan", "inf", "٣", "1\0"]
)
def test_an_invalid_quantity_is_quoted_in_the_error(parse: Callable[[str], float], text: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse(text)

    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("parse", "text", "words"),
    [
        (parse_duration, "1.5parsec", "'1.5parsec' is not a duration: write like 250ms, 1.5s or 2m"),
        (parse_duration, "5k", "'5k' is not a duration"),
        (parse_duration, "1e999", "'1e999' is too large"),
        (parse_duration, "1e1000", "'1e1000' is not a duration"),
        (parse_size, "64s", "'64s' is not a size: write a whole number of bytes like 64, 1k or 64KiB"),
        (parse_size, "1.5", "'1.5' is not a size: write a whole number"),
        (parse_size, "0.3KiB", "'0.3KiB' is not a size: write a whole number"),
        (parse_size, "off", "'off' is not a size"),
        (parse_rate, "64KiB", "'64KiB' is not a rate: write like 10k or 50/1s"),
        (parse_rate, "1e999", "'1e999' is too large"),
        (parse_rate, "1/1e-999s", "'1/1e-999s' is too large"),
        (parse_rate, "1/0s", "'1/0s' is not a rate: its period is 0"),
    ],
)
def test_an_error_says_what_is_wrong(parse: Callable[[str], float], text: str, words: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse(text)

    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["50/", "50/2", "50/parsec", "50/-1s", "/s", "x/s", "1/2/3s"])
def test_a_wrong_rate_is_quoted_as_it_was_written(text: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_rate(text)

    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("parse", [parse_duration, parse_size, parse_rate])
def test_more_digits_than_python_reads_are_an_error_like_any_other(parse: Callable[[str], float]) -> None:
    with pytest.raises(UnitError):
        parse("1" * (sys.get_int_max_str_digits() + 1))


@pytest.mark.parametrize("value", [-1.0, -5e-324, -math.inf, math.nan])
@pytest.mark.parametrize("form", [format_duration, format_rate])
def test_a_negative_quantity_cannot_be_formatted(form: Callable[[float], str], value: float) -> None:
    with pytest.raises(UnitError, match=f"^{value!r} is not a quantity: it must be 0 or more$"):
        form(value)


@pytest.mark.parametrize(
    ("annotation", "name", "text", "value"),
    [(Seconds, "DURATION", "1m", 60), (Size, "SIZE", "1MiB", 2**20), (Rate, "RATE", "10k", 10_000)],
    ids=["Seconds", "Size", "Rate"],
)
def test_an_annotation_holds_its_unit(annotation: Any, name: str, text: str, value: int) -> None:
    _, unit = get_args(annotation)

    assert isinstance(unit, Unit)
    assert unit.name == name
    assert unit.parse(text) == value
    assert unit.format(value) == text
