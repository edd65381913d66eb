"""Reported latencies are those of arithmetic: in simulated time exactly, on real sockets by what the server saw."""

from __future__ import annotations

import pytest

from anyecho.measure.checks import failures
from anyecho.measure.generator import lag_quantile
from anyecho.measure.histogram import Histogram
from anyecho.measure.quantiles import quantile
from tests.measure.simulation import MILLISECOND, SECOND, Simulation

DELAY = 5 * MILLISECOND
SERVICE = MILLISECOND // 10


def assert_exact(histogram: Histogram, samples: list[int]) -> None:
    """Check that `histogram` has exactly `samples`, and its quantiles are theirs to 3 digits."""
    assert histogram == Histogram.from_samples(samples)
    ranked = sorted(samples)
    for q in (0.5, 0.9, 0.99, 0.999, 1.0):
        assert histogram.value_at(q) == pytest.approx(quantile(ranked, q), rel=1e-3)


def served_in_turn(due: list[int], served_at: list[int]) -> list[int]:
    """Return when each message of one connection is answered, if `served_at` is the earliest time for each."""
    answered: list[int] = []
    for when, earliest in zip(due, served_at, strict=True):
        sent = max(when, answered[-1] if answered else 0)
        answered.append(max(sent + SERVICE, earliest))

    return answered


@pytest.mark.parametrize(("connections", "pipeline"), [(1, 8), (10, 1), (10, 4)])
def test_a_delay_of_5_ms_is_every_latency_and_no_lag(connections: int, pipeline: int) -> None:
    simulation = Simulation(
        lambda number, time: time + DELAY, rate=1000, seconds=3, connections=connections, pipeline=pipeline
    )
    result = simulation.run()
    assert result.counts.verified == result.counts.sent == 3000
    assert_exact(result.latency, [DELAY] * 3000)
    assert_exact(result.uncorrected, [DELAY] * 3000)
    assert_exact(result.lag, [0] * 3000)
    assert not result.generator.late
    assert result.generator.seconds_off_rate == 0
    assert failures(result) == []


def test_a_stall_of_1_s_is_in_the_corrected_latencies_and_hidden_from_the_uncorrected() -> None:
    stall, end = 3 * SECOND, 4 * SECOND

    def answer(number: int, time: int) -> int:
        return end if stall <= time < end else time + SERVICE

    result = Simulation(answer, rate=1000, seconds=10).run()

    due = [number * MILLISECOND for number in range(10_000)]
    answered = served_in_turn(due, [end if stall <= when < end else 0 for when in due])
    assert_exact(result.latency, [done - when for done, when in zip(answered, due, strict=True)])
    assert_exact(result.uncorrected, [SERVICE] * 9999 + [SECOND])
    # A tenth of the messages met the stall; a load that waits for it has sent a single message there.
    assert result.latency.max == SECOND
    assert result.latency.value_at(0.99) == pytest.approx(0.9 * SECOND, rel=0.02)
    assert result.uncorrected.value_at(0.999) == pytest.approx(SERVICE, rel=1e-3)
    # The wait for a busy connection is no fault of the generator.
    assert_exact(result.lag, [0] * 10_000)
    assert not result.generator.late


def test_a_closed_loop_that_hides_a_stall_says_what_a_message_at_a_random_time_would_have_waited() -> None:
    stall, end = 3 * SECOND, 3 * SECOND + 500 * MILLISECOND

    def answer(number: int, time: int) -> int:
        return end if stall <= time < end else time + SERVICE

    closed = Simulation(answer, rate=None, seconds=10, connections=4).run()
    opened = Simulation(answer, rate=1000, seconds=10, connections=4, pipeline=500).run()

    # 4 of 380,004 messages met the stall, and no percentile shows it.
    assert closed.latency.value_at(0.9999) == pytest.approx(SERVICE, rel=1e-3)
    assert closed.stall is not None
    assert closed.stall.longest == 0.5
    assert closed.stall.unsent == pytest.approx(4 * 500 * MILLISECOND / SERVICE, rel=1e-3)
    assert closed.stall.p99 == pytest.approx(0.4, rel=1e-3)
    assert closed.stall.p99 == pytest.approx(opened.latency.value_at(0.99) / SECOND, rel=2e-3)
    assert opened.stall is None


def test_a_stall_that_began_in_the_warm_up_of_a_closed_loop_is_a_stall_of_the_measurement() -> None:
    begin, end = -100 * MILLISECOND, 500 * MILLISECOND

    def answer(number: int, time: int) -> int:
        return end if begin <= time < end else time + SERVICE

    result = Simulation(answer, rate=None, seconds=10, connections=4, warm_up=SECOND).run()
    assert result.counts.from_warm_up == 4
    assert result.latency.max == SERVICE
    assert result.stall is not None
    assert result.stall.longest == 0.5
    assert result.stall.p99 == pytest.approx(0.4, rel=1e-3)


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("longest", [SERVICE, 90 * MILLISECOND])
def test_a_closed_loop_whose_percentiles_show_what_there_is_has_no_stall(connections: int, longest: int) -> None:
    end = SECOND + longest

    def answer(number: int, time: int) -> int:
        return end if SECOND <= time < end else time + SERVICE

    assert Simulation(answer, rate=None, seconds=10, connections=connections).run().stall is None


def test_a_latency_above_an_hour_without_a_timeout_is_counted_as_an_hour() -> None:
    hour = 3600 * SECOND
    result = Simulation(
        lambda number, time: max(time + SERVICE, 2 * hour), rate=1.0, seconds=3, pipeline=9, timeout=None
    ).run()
    assert (result.counts.verified, result.latency.count, result.latency.max) == (3, 3, hour)
    assert "latencies above 1h are counted as that" in result.notes


def test_a_generator_that_is_starved_for_300_ms_is_late_and_fails_every_gate() -> None:
    begin, end = 2 * SECOND, 2 * SECOND + 300 * MILLISECOND
    result = Simulation(
        lambda number, time: time + SERVICE, rate=1000, seconds=10, connections=400, starved=(begin, end)
    ).run()

    due = [number * MILLISECOND for number in range(10_000)]
    # A reply that comes while the generator is starved is read at the end of that time.
    lags = [end - when if begin <= when < end else 0 for when in due]
    assert_exact(result.lag, lags)
    assert_exact(result.latency, [lag + SERVICE for lag in lags])
    assert_exact(result.uncorrected, [SERVICE] * 10_000)
    assert result.lag.value_at(0.99) == pytest.approx(200 * MILLISECOND, rel=0.01)
    assert result.generator.late
    assert "the generator was late" in failures(result)
    assert result.generator.seconds_off_rate == 0


def test_a_lag_below_1_percent_of_the_messages_is_not_late() -> None:
    result = Simulation(
        lambda number, time: time + SERVICE,
        rate=1000,
        seconds=10,
        connections=400,
        starved=(SECOND, SECOND + 90 * MILLISECOND),
    ).run()
    assert result.lag.max == 90 * MILLISECOND
    assert not result.generator.late


@pytest.mark.parametrize(
    ("seconds", "starved", "quantile", "is_late"),
    [
        (0.2, 6 * MILLISECOND, 0.95, False),  # 5 of 200 lags are above 1 ms
        (0.2, 15 * MILLISECOND, 0.95, True),
        (0.005, 2 * MILLISECOND, 0.5, False),
        (0.005, 5 * MILLISECOND, 0.5, True),
    ],
)
def test_a_few_late_messages_of_a_few_are_no_late_generator(
    seconds: float, starved: int, quantile: float, is_late: bool
) -> None:
    result = Simulation(
        lambda number, time: time + SERVICE, rate=1000, seconds=seconds, connections=400, starved=(0, starved)
    ).run()
    assert result.lag.max == starved
    assert lag_quantile(result.lag.count) == quantile
    assert result.generator.late is is_late


def test_messages_sent_after_the_end_lower_the_achieved_rate() -> None:
    begin, end = 9 * SECOND + 500 * MILLISECOND, 10 * SECOND + 500 * MILLISECOND
    result = Simulation(
        lambda number, time: time + SERVICE, rate=1000, seconds=10, connections=1000, starved=(begin, end)
    ).run()
    assert result.counts.verified == 10_000
    assert result.generator.asked_rate == 1000
    assert result.generator.achieved_rate == pytest.approx(1000 * 10 / 10.5)
    assert result.generator.seconds_off_rate == 1


def test_a_warm_up_that_is_not_sent_by_its_end_makes_no_negative_rate() -> None:
    simulation = Simulation(lambda number, time: time + SERVICE, rate=1000, seconds=1, warm_up=SECOND)
    simulation.wires[0].on_write = lambda data: None  # no reply
    [connection] = simulation.connections
    for _ in range(3):
        connection.take(simulation.clock.now, simulation.clock.now)
    simulation.clock.now = simulation.start
    assert (len(connection.due), len(connection.sent)) == (3, 1)
    assert simulation.result().generator.achieved_rate == 0
