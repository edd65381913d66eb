"""The search for the highest rate, against a server whose latency depends on the rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from anyecho.errors import UsageError
from anyecho.measure.find_rate import RateSearch, parse_condition
from anyecho.measure.histogram import Histogram
from anyecho.measure.result import Counts, RunResult
from tests.measure.results import load, result

CONDITION = "p99<1ms"


def run_at(rate: float, *, slow: bool = False, **fields: Any) -> RunResult:
    """Return a run at `rate` whose latencies are 0.5 ms, or 2 ms if `slow`."""
    base = result()
    histogram = Histogram.from_samples([2_000_000 if slow else 500_000] * 2000)
    generator = replace(base.generator, asked_rate=rate, achieved_rate=rate)
    counts = Counts(sent=2000, verified=2000, wrong=0, lost=0)
    known: dict[str, Any] = {
        "load": load(rate=rate),
        "latency": histogram,
        "generator": generator,
        "counts": counts,
    }
    return replace(base, **known | {"counts": counts} | fields)


def searched(run: Callable[[float], RunResult], start: float | None = None) -> tuple[RateSearch, list[float]]:
    search, tried = RateSearch(parse_condition(CONDITION), start), []
    while search.rate is not None:
        tried.append(search.rate)
        search.report(run(search.rate))
    return search, tried


@pytest.mark.parametrize("capacity", [1.5, 37, 999, 1000, 12_345, 1_000_000])
def test_the_rate_found_is_within_5_percent_below_the_capacity(capacity: float) -> None:
    search, tried = searched(lambda rate: run_at(rate, slow=rate > capacity))
    assert search.held is not None
    assert capacity / 1.055 <= search.held <= capacity
    assert len(tried) == len(set(tried)) <= 20


def test_the_rate_is_doubled_and_then_bisected() -> None:
    _, tried = searched(lambda rate: run_at(rate, slow=rate > 5000))
    assert tried[:5] == [1000, 2000, 4000, 8000, 6000]


def test_the_search_begins_at_the_given_rate() -> None:
    _, tried = searched(lambda rate: run_at(rate, slow=rate > 300), start=100.0)
    assert tried[:3] == [100, 200, 400]


def test_the_summary_has_the_rate_that_failed_and_why() -> None:
    search, _ = searched(lambda rate: run_at(rate, slow=rate > 1000))
    assert search.summary() == "p99<1ms holds up to 1000/s (at 1030/s: p99 is 2.00ms)"


def test_a_condition_that_holds_at_no_rate_is_reported() -> None:
    search, tried = searched(lambda rate: run_at(rate, slow=True))
    assert (search.held, min(tried)) == (None, 1.0)
    assert search.summary().startswith("no rate was found at which p99<1ms holds: not even at 1.0/s: p99 is")


GENERATOR = run_at(2000).generator


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"counts": Counts(sent=2000, verified=1999, wrong=0, lost=1), "error": "message 7 had no reply"},
            "message 7",
        ),
        ({"counts": Counts(sent=2000, verified=1999, wrong=1, lost=0)}, "1 of 2000 messages did not come back"),
        ({"saturated": True}, "a queue of due messages became full"),
        ({"generator": replace(GENERATOR, achieved_rate=1989.0)}, "1989/s sent of 2000/s"),
        ({"latency": Histogram.from_samples([500_000] * 900)}, "p99 is not known"),
    ],
)
def test_a_rate_is_too_high_if_the_run_did_not_hold_it(fields: dict[str, Any], reason: str) -> None:
    search = RateSearch(parse_condition(CONDITION), 2000.0)
    assert f"does not hold: {reason}" in search.report(run_at(2000, **fields))
    assert search.rate == 1000


def test_a_rate_within_half_a_percent_is_held() -> None:
    search = RateSearch(parse_condition(CONDITION), 2000.0)
    search.report(run_at(2000, generator=replace(GENERATOR, achieved_rate=1991.0)))
    assert search.held == 2000


def test_a_late_generator_is_tried_again_and_then_ends_the_search() -> None:
    def run(rate: float) -> RunResult:
        run = run_at(rate)
        return replace(run, generator=replace(run.generator, late=rate > 2000))

    search, tried = searched(run)
    assert tried == [1000, 2000, 4000, 4000]
    assert search.summary() == "p99<1ms holds up to at least 2000/s (the generator is the limit at 4000/s)"


def test_a_generator_that_was_late_once_does_not_end_the_search() -> None:
    runs = iter([True, False, False])

    def run(rate: float) -> RunResult:
        run = run_at(rate, slow=rate > 1500)
        return replace(run, generator=replace(run.generator, late=next(runs, False)))

    search, tried = searched(run)
    assert tried[:3] == [1000, 1000, 2000]
    assert search.held is not None


def test_an_interrupt_ends_the_search() -> None:
    search, tried = searched(lambda rate: run_at(rate, interrupted=rate > 1000))
    assert tried == [1000, 2000]
    assert search.summary() == "p99<1ms holds up to at least 1000/s (the search was interrupted)"


@pytest.mark.parametrize("text", ["p99<+5%", "p99", "speed<3"])
def test_a_wrong_condition_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_condition(text)
