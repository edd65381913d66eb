"""Results as text: every point of a run has its line, and what casts doubt on the run is marked."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from anyecho.measure.checks import checks, duration_text, failures, rate_text, volume_text
from anyecho.measure.histogram import Histogram
from anyecho.measure.metrics import find_metric
from anyecho.measure.omission import Stall
from anyecho.measure.result import Counts, RunResult, Spread
from anyecho.measure.series_text import series_lines
from anyecho.measure.text import describe_load, labels, latency_text, percentile_name, run_lines
from tests.measure.results import document, load, result

NOTHING = Histogram.from_samples([])
GENERATOR = result().generator


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (1e-9, "1.00ns"),
        (999.4e-9, "999ns"),
        (999.6e-9, "1.00us"),
        (9.994e-6, "9.99us"),
        (9.996e-6, "10.0us"),
        (63.44e-6, "63.4us"),
        (1.2e-3, "1.20ms"),
        (12, "12.0s"),
        (3600, "3600s"),
    ],
)
def test_a_duration_has_three_digits_and_a_unit(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_a_number_of_1_has_its_noun_in_the_singular() -> None:
    one = load(connections=1, requests=1)
    assert describe_load(one, ["connections", "requests"]) == "1 connection, 1 message"
    assert describe_load(load(requests=2), ["connections", "requests"]) == "2 connections, 2 messages"


@pytest.mark.parametrize(
    ("size", "text"), [(1, "1 byte"), (64, "64 bytes"), (1024, "1KiB"), (65507, "65507 bytes"), (1 << 20, "1MiB")]
)
def test_a_size_has_a_unit(size: int, text: str) -> None:
    assert describe_load(load(size=size), ["size"]) == text


@pytest.mark.parametrize(
    ("percentile", "text"), [(50.0, "p50"), (99.9, "p99.9"), (99.99999, "p99.99999"), (0.00001, "p0.00001")]
)
def test_a_percentile_is_never_rounded_in_its_name(percentile: float, text: str) -> None:
    assert percentile_name(percentile) == text
    assert find_metric(text).name == text


def test_a_table_of_several_runs_has_the_percentiles_asked_for() -> None:
    runs = document(result(1), result(2))
    assert series_lines(runs)[2].split() == [
        "runs",
        "msg/s",
        "p50",
        "p99",
        "max",
        "lag",
        "p99",
        "cpu/echo",
        "wrong",
        "lost",
    ]
    asked = series_lines(runs, (75.0, 99.9, 99.99999))[2:4]
    assert asked[0].split() == ["runs", "msg/s", "p75", "max", "lag", "p99", "cpu/echo", "wrong", "lost"]


def test_a_failed_run_beside_good_ones_has_its_line() -> None:
    none = Histogram.from_samples([])
    counts = Counts(sent=0, verified=0, wrong=0, lost=0)
    failed = result(latency=none, uncorrected=none, lag=none, counts=counts, per_second=(), error="refused")
    lines = series_lines(document(result(1), failed, result(2)))
    assert lines[3].split()[:2] == ["median", "2"]
    assert lines[4] == "! failed: refused (1 of 3 runs)"


def test_rates_and_volumes_have_a_unit() -> None:
    assert [rate_text(each) for each in (0, 0.0333, 9.99, 999.94, 12345.6)] == [
        *("0.0/s", "0.0333/s", "10.0/s", "999.9/s", "12346/s")
    ]
    assert [volume_text(each) for each in (0, 999, 64e3, 1.234e9)] == ["0 B/s", "999 B/s", "64 kB/s", "1.23 GB/s"]


def test_a_latency_that_the_clock_cannot_tell_is_a_bound() -> None:
    assert [latency_text(each, step_ns=230) for each in (None, 4599, 4600)] == ["-", "<4.60us", "4.60us"]


def test_an_open_loop_shows_corrected_and_uncorrected_latency_and_the_lag() -> None:
    lines = run_lines(result())
    rows = [line.split()[0] for line in lines[2:7]]
    assert rows == ["p50", "corrected", "uncorrected", "lag", "corrected:"]
    # The p99.9 of 3,000 samples has 3 beyond it.
    assert [line.split()[4:6] for line in lines[3:6]] == [["-", "-"]] * 3


def test_a_closed_loop_shows_one_latency_if_both_are_equal() -> None:
    run = result(load=load(rate=None), lag=NOTHING)
    for shown, rows in ((replace(run, uncorrected=run.latency), 1), (run, 2)):
        lines = run_lines(shown)
        assert [line.partition(" ")[0] for line in lines[3 : 3 + rows]] == ["latency", "uncorrected"][:rows]
        assert lines[3 + rows] == ""


DOUBTFUL = {
    "messages": result(counts=Counts(sent=9, verified=7, wrong=1, lost=1)),
    "rate": result(generator=replace(GENERATOR, seconds_off_rate=1)),
    "lag": result(generator=replace(GENERATOR, late=True)),
    "generator": result(generator=replace(GENERATOR, cpu_share=0.81)),
    "connections": result(spread=Spread.of((10, 10, 5, 3), (0.1,))),
    "steadiness": result(seconds=10, steadiness=replace(result(seconds=10).steadiness, steady=False)),
    "saturated": result(saturated=True),
    "stall": result(stall=Stall(longest=1.2, unsent=3456, p99=0.7)),
    "dropped": result(ended_early=True),
    "end": result(interrupted=True),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_what_casts_doubt_on_a_run_is_marked(name: str) -> None:
    run = DOUBTFUL[name]
    assert [point.name for point in checks(run) if point.doubt] == [name]
    assert [line.split()[1] for line in run_lines(run) if line.startswith("!")] == [name]
    assert [line.split()[1] for line in series_lines(document(run, result())) if line.startswith("!")] == [
        f"{name}:"
    ]


def test_a_good_run_has_no_doubt_and_no_failure() -> None:
    assert [point for point in checks(result(seconds=12)) if point.doubt] == []
    assert failures(result()) == []


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (DOUBTFUL["lag"], "the generator was late"),
        (DOUBTFUL["saturated"], "the run was saturated"),
        (DOUBTFUL["dropped"], "every connection was dropped before the end"),
        (DOUBTFUL["end"], "the run was interrupted"),
        (result(counts=Counts(sent=2, verified=1, wrong=1, lost=0)), "a reply was wrong"),
        (result(counts=replace(result().counts, connect_failed=1)), "1 connection failed"),
        (result(counts=Counts(sent=1, verified=0, wrong=0, lost=1)), "no reply was verified"),
    ],
)
def test_a_run_that_passes_no_gate_has_a_reason(run: RunResult, reason: str) -> None:
    assert failures(run) == [reason]


def test_every_count_is_in_the_line_of_messages() -> None:
    counts = Counts(
        sent=10, verified=4, wrong=3, lost=2, outstanding=1, late=5, duplicates=6, reordered=7, connect_failed=8
    )
    assert checks(result(counts=counts))[0].text == (
        "10 sent: 4 verified, 3 wrong, 2 lost, 1 outstanding; "
        "5 late, 6 duplicates, 7 reordered, 8 connections failed"
    )


def test_replies_to_the_warm_up_that_came_after_it_are_in_the_line_of_the_schedule() -> None:
    counts = replace(result().counts, from_warm_up=3)
    texts = [point.text for point in checks(result(counts=counts)) if point.name == "schedule"]
    assert texts[0].endswith("; warm-up 0s, 3 of its replies came after it")


def test_a_table_names_what_sets_the_runs_apart() -> None:
    runs = [result(load=load(size=size)) for size in (64, 1024)]
    assert labels(runs) == ["64 bytes", "1KiB"]
    assert labels([*runs, *runs]) == ["64 bytes, run 1", "1KiB, run 1", "64 bytes, run 2", "1KiB, run 2"]
    assert labels(runs[:1] * 2) == ["run 1", "run 2"]
    lines = series_lines(document(*runs))
    assert lines[0] == "tcp://127.0.0.1:10000, 2 connections, 1k/s, 3s"
    assert [re.split(" {2,}", line)[0] for line in lines[3:5]] == ["64 bytes", "1KiB"]


@pytest.mark.parametrize("runs", [(), (result(),), (result(), result())])
def test_the_machine_is_the_last_line(runs: tuple[RunResult, ...]) -> None:
    lines = series_lines(replace(document(), runs=runs))
    assert lines[-1] == (
        "  machine: Linux 6.18, Some processor, 2 cores, governor performance,"
        " load 0.50 before, 0.70 after, 0.02 s stolen"
    )


def test_a_lag_of_few_messages_has_the_percentile_that_they_resolve() -> None:
    few = result(lag=Histogram.from_samples([50_000] * 100), latency=NOTHING)
    texts = {point.name: point.text for point in checks(few)}
    assert texts["lag"] == "p90 50.0us, max 50.0us, without any reply: in time"
    assert find_metric("lag").of(few) is None


def test_connections_without_any_reply_are_marked_and_have_no_index() -> None:
    [point] = [each for each in checks(result(spread=Spread.of((0, 0), ()))) if each.name == "connections"]
    assert (point.text, point.doubt) == ("no replies on any", True)


@pytest.mark.parametrize(
    ("fields", "name", "end"),
    [
        (
            {"generator": replace(GENERATOR, gc="on", gc_pauses=(0.002, 0.01))},
            "generator",
            "garbage collection on, 2 pauses of at most 10.0ms",
        ),
        ({"spread": Spread.of((10, 10), ())}, "connections", "10 to 10 replies each, Jain index 1.000"),
    ],
)
def test_a_point_has_the_facts_that_are_known(fields: dict[str, Any], name: str, end: str) -> None:
    [text] = [point.text for point in checks(result(**fields)) if point.name == name]
    assert text.endswith(end)


def test_a_run_without_any_reply_can_be_shown() -> None:
    nothing = result(
        counts=Counts(sent=0, verified=0, wrong=0, lost=0, connect_failed=1),
        latency=NOTHING,
        uncorrected=NOTHING,
        lag=NOTHING,
        spread=None,
        error="connection refused",
    )
    for runs in ((nothing,), (nothing, nothing)):
        assert any("connection refused" in line for line in series_lines(document(*runs)))
