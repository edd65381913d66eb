"""Totals: the sum of several servers, JSON and back, and the totals of a process that has ended."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from anyecho.errors import InternalError, UsageError
from anyecho.server.totals import DatagramTotals, Histogram, Totals, merge

BOUNDS = Totals().handshakes.bounds


def handshakes(bucket: int, seconds: float) -> Histogram:
    counts = [0] * (len(BOUNDS) + 1)
    counts[bucket] = 1
    return Histogram(bounds=BOUNDS, counts=tuple(counts), seconds=seconds)


ONE = Totals(
    accepted=5,
    open=2,
    closed={"eof": 2, "idle": 1},
    bytes_received=10,
    accept_errors={"EMFILE": 1},
    tls_failures={"http_request": 1},
    handshakes=handshakes(0, 0.0005),
    datagrams=DatagramTotals(received=3, echoed=2, dropped={"rate": 1}),
)
OTHER = Totals(accepted=1, closed={"eof": 1}, bytes_sent=7, handshakes=handshakes(-1, 20.0), restarts={"signal": 1})


def test_totals_add_up_field_by_field_and_key_by_key() -> None:
    total = merge([ONE, OTHER])

    assert total.accepted == 6
    assert total.open == 2
    assert total.closed == {"eof": 3, "idle": 1}
    assert (total.bytes_received, total.bytes_sent) == (10, 7)
    assert total.accept_errors == {"EMFILE": 1}
    assert total.tls_failures == {"http_request": 1}
    assert total.datagrams == ONE.datagrams
    assert total.restarts == {"signal": 1}
    assert total.handshakes.counts == (1, *(0,) * (len(BOUNDS) - 1), 1)
    assert total.handshakes.seconds == pytest.approx(20.0005)


def test_the_order_of_a_sum_makes_no_difference() -> None:
    assert merge([ONE, OTHER]) == merge([OTHER, ONE])


def test_the_sum_of_nothing_is_zero() -> None:
    assert merge([]) == Totals()
    assert merge([ONE]) == ONE


@pytest.mark.parametrize("totals", [Totals(), ONE, OTHER], ids=["zero", "one", "other"])
def test_totals_survive_json(totals: Totals) -> None:
    assert Totals.from_json(json.loads(json.dumps(totals.to_json()))) == totals


def test_damaged_json_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"^accepted is 'many', which does not belong there$"):
        Totals.from_json({"accepted": "many"})


def test_totals_of_another_version_are_an_error() -> None:
    other = replace(OTHER, handshakes=Histogram(bounds=(1.0,))).to_json()

    with pytest.raises(UsageError, match="totals of another version: histograms with different bounds"):
        Totals.from_json(other)


def test_fields_of_a_newer_version_are_left_out() -> None:
    assert Totals.from_json(ONE.to_json() | {"later": 1}) == ONE


def test_a_process_that_has_ended_has_no_open_connection() -> None:
    ended = ONE.after_end()

    assert ended.open == 0
    assert ended.closed == {"eof": 2, "idle": 1, "died": 2}
    assert ended.accepted == sum(ended.closed.values())
    assert ended.after_end() == ended


def test_histograms_of_different_bounds_do_not_add_up() -> None:
    other = replace(OTHER, handshakes=Histogram(bounds=(1.0,)))

    with pytest.raises(InternalError, match="different bounds"):
        merge([ONE, other])


def test_a_histogram_has_a_count_for_each_bucket() -> None:
    with pytest.raises(InternalError, match="1 bounds has 1 counts"):
        Histogram(bounds=(1.0,), counts=(1,))
