"""Comparisons of repetitions, and gates on their figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import pytest

from anyecho.errors import UsageError
from anyecho.measure.compare import Comparison, Group, compare, groups, matched
from anyecho.measure.comparison_text import comparison_lines
from anyecho.measure.gates import broken_gates, parse_gate
from anyecho.measure.histogram import Histogram
from anyecho.measure.metrics import COMPARED, find_metric
from anyecho.measure.result import Counts, RunResult
from tests.measure.results import document, load, result


@cache
def base() -> RunResult:
    return result()


def repetitions(
    costs: Sequence[float], *, rounds: bool = False, name: str = "a.json", **fields: Any
) -> list[Group]:
    """Return the group of one run per CPU cost in microseconds."""
    runs = [
        replace(
            base(),
            server_cpu_per_echo=cost * 1e-6,
            round=number if rounds else None,
            load=load(seed=number, **fields),
        )
        for number, cost in enumerate(costs)
    ]
    return groups(document(*runs), name)


def cpu(comparison: Comparison) -> Any:
    return next(row for row in comparison.rows if row.metric.name == "cpu")


def costs(seed: int, scale: float = 1.0, count: int = 7) -> list[float]:
    random = Random(seed)
    return [20 * scale * random.lognormvariate(0, 0.03) for _ in range(count)]


def compared(one: Sequence[float], other: Sequence[float], *, rounds: bool = False) -> Comparison:
    [before], [after] = repetitions(one, rounds=rounds), repetitions(other, rounds=rounds, name="b.json")
    return compare(before, after, interleaved=True)


def test_repetitions_with_other_seeds_are_one_configuration() -> None:
    runs = [result(seed, load=load(size=size, seed=seed)) for seed in (1, 2) for size in (64, 1024)]
    found = groups(document(*runs))
    assert [(group.load.size, len(group.runs)) for group in found] == [(64, 2), (1024, 2)]


def test_loads_on_several_backends_are_named_by_them() -> None:
    runs = [replace(base(), generator=replace(base().generator, backend=name)) for name in ("asyncio", "trio")]
    assert [group.name for group in groups(document(*runs))] == ["load on asyncio", "load on trio"]
    runs += [replace(run, load=load(size=1)) for run in runs]
    assert [group.name for group in groups(document(*runs))][1:3] == [
        "64 bytes, load on trio",
        "1 byte, load on asyncio",
    ]


def test_shards_that_are_compared_have_their_own_numbers() -> None:
    shards = [result(load=load(shard_index=number, shard_count=2)) for number in range(2)]
    [one], [other] = (groups(document(each), "a.json") for each in shards)
    lines = comparison_lines(compare(one, other))
    assert [line.partition("shard ")[2] for line in lines[:2]] == ["1 of 2: 1 run", "2 of 2: 1 run"]
    assert "! a shard is a part of a load: --merge adds the shards of one load up" in lines


def test_a_change_of_25_percent_is_found_and_its_size_shown() -> None:
    comparison = compared(costs(1), costs(2, 1.25))
    row = cpu(comparison)
    assert (row.verdict, row.different, comparison.paired) == ("higher", True, False)
    assert 1.15 < row.ratio.low < row.ratio.estimate < row.ratio.high < 1.35
    assert cpu(compared(costs(2, 1.25), costs(1))).verdict == "lower"


def test_equal_metrics_have_no_difference() -> None:
    rows = compared(costs(1), costs(2)).rows
    assert [row.verdict for row in rows if row.metric.name in ("p50", "p99")] == ["no difference found"] * 2


@pytest.mark.parametrize(("count", "verdict"), [(1, "no verdict"), (3, "no verdict"), (5, "higher")])
def test_there_is_no_verdict_below_four_repetitions(count: int, verdict: str) -> None:
    row = cpu(compared(costs(1, count=count), costs(2, 2, count=count)))
    assert row.verdict.partition(":")[0] == verdict
    assert (row.p is None) == (count < 4)
    assert row.ratio.estimate == pytest.approx(2, rel=0.1)


def test_repetitions_that_cannot_reach_significance_have_no_verdict() -> None:
    # 4 against 4 reach a p-value of 0.029, times three metrics.
    row = cpu(compared(costs(1, count=4), costs(2, 2, count=4)))
    assert row.verdict == "no verdict: so few runs cannot reach p < 0.05"
    assert row.p == pytest.approx(3 * 2 / 70)


def test_the_rate_of_an_open_loop_is_not_tested_and_that_of_a_closed_one_is() -> None:
    def verdict(**fields: Any) -> str:
        [one], [other] = (repetitions(costs(seed), **fields) for seed in (1, 2))
        return next(row.verdict for row in compare(one, other).rows if row.metric.name == "rate")

    assert verdict() == "given by the load"
    assert verdict(rate=None) == "no difference found"


def test_runs_of_the_same_rounds_are_compared_by_pairs() -> None:
    noise = [1, 3, 2, 5, 4, 9, 7, 6]
    one = [each * cost for each, cost in zip(noise, costs(1, count=8), strict=True)]
    other = [each * cost for each, cost in zip(noise, costs(2, 1.25, count=8), strict=True)]
    paired, alone = (compared(one, other, rounds=rounds) for rounds in (True, False))
    assert (paired.paired, alone.paired) == (True, False)
    texts = [comparison_lines(each)[1].partition(" runs")[2] for each in (paired, alone)]
    assert texts == [", by pairs of the same round, Wilcoxon test", ""]
    assert (cpu(paired).verdict, cpu(alone).verdict) == ("higher", "no difference found")


def test_runs_of_two_commands_are_no_pairs_whatever_their_rounds() -> None:
    [one], [other] = repetitions(costs(1), rounds=True), repetitions(costs(2), rounds=True)
    assert not compare(one, other).paired


@pytest.mark.parametrize("rounds", [False, True])
def test_a_gate_on_the_given_rate_of_an_open_loop_is_decided(rounds: bool) -> None:
    comparison = compared(costs(1), costs(2), rounds=rounds)
    assert broken_gates([parse_gate("rate<-5%")], [comparison.changed], [comparison]) == []


def test_pairs_are_those_of_the_same_round_in_any_order() -> None:
    [one], [other] = repetitions(costs(1, count=8), rounds=True), repetitions(costs(2, count=8), rounds=True)
    shuffled = replace(other, runs=other.runs[::-1])
    one_row, other_row = (cpu(compare(one, each, interleaved=True)) for each in (shuffled, other))
    assert (one_row.p, one_row.ratio, one_row.changed) == (other_row.p, other_row.ratio, other_row.changed)


def test_other_or_repeated_rounds_make_no_pairs() -> None:
    [one], [other] = repetitions(costs(1), rounds=True), repetitions(costs(2), rounds=True)
    later = replace(other, runs=tuple(replace(run, round=(run.round or 0) + 1) for run in other.runs))
    same = replace(other, runs=tuple(replace(run, round=0) for run in other.runs))
    assert [compare(one, each, interleaved=True).paired for each in (other, later, same)] == [True, False, False]


def test_a_metric_that_one_run_lacks_is_not_compared() -> None:
    [one], [other] = repetitions(costs(1)), repetitions(costs(2))
    runs = (replace(other.runs[0], server_cpu_per_echo=None), *other.runs[1:])
    row = cpu(compare(one, replace(other, runs=runs)))
    assert (row.ratio, row.p, row.verdict) == (None, None, "not known for each run")


def test_configurations_are_matched_whatever_the_address() -> None:
    one = groups(document(*(result(load=load(size=size)) for size in (64, 128, 256))))
    other = groups(document(*(result(load=load(size=size, address="unix:/x")) for size in (256, 64))))
    assert [(a.load.size, b.load.size) for a, b in matched(one, other)] == [(256, 256), (64, 64)]
    assert matched(one[:1], one[1:2]) == [(one[0], one[1])]
    with pytest.raises(UsageError, match=r"^nothing to compare: the results have no configuration in common$"):
        matched(one[:2], one[2:])


def test_unchanged_runs_are_rarely_called_different_on_any_metric() -> None:
    # Three metrics are tested, of which two never differ here: Holm's method triples the smallest p-value.
    called = sum(cpu(compared(costs(seed), costs(-seed - 1))).different for seed in range(60))
    assert called <= 6


def test_the_lines_of_a_comparison_have_a_row_per_metric_and_the_doubts() -> None:
    [one], [other] = repetitions(costs(1)), repetitions(costs(2, 1.25), name="b.json")
    late = replace(other.runs[0], generator=replace(other.runs[0].generator, late=True))
    lines = comparison_lines(compare(one, replace(other, runs=(late, *other.runs[1:]))))
    assert lines[:2] == [
        "baseline: a.json: tcp://127.0.0.1:10000, 2 connections, 64 bytes, 1k/s, 3s: 7 runs",
        "changed: b.json: tcp://127.0.0.1:10000, 2 connections, 64 bytes, 1k/s, 3s: 7 runs",
    ]
    assert [line.split()[0] for line in lines[3:8]] == ["baseline", "p50", "p99", "rate", "cpu"]
    assert lines[7].endswith("  higher")
    assert lines[8:] == ["! b.json: the generator was late in 1 of 7 runs", ""]


@pytest.mark.parametrize(
    ("condition", "broken"),
    [
        ("p99>5ms", False),
        ("p99>300us", True),
        ("p50>50us", True),
        ("p50<50us", False),
        ("p50 < 1ms", True),
        ("max>29ms", True),
        ("mean>300us", True),
        ("rate<999", False),
        ("rate<1.1k", True),
        ("cpu>22us", True),
        ("lag>1ms", False),
        ("lost>0", False),
        ("wrong>0%", False),
        ("p99.9>1s", True),  # unknown: 3 samples are beyond it
    ],
)
def test_a_gate_fails_if_its_condition_holds_or_is_not_known(condition: str, broken: bool) -> None:
    reasons = broken_gates([parse_gate(condition)], groups(document(base()), "a.json"))
    assert [reason.startswith(f"a.json: {condition}: ") for reason in reasons] == [True] * broken


def test_a_gate_on_the_lag_fails_in_a_closed_loop() -> None:
    closed = replace(base(), load=replace(base().load, rate=None), lag=Histogram.from_samples([]))
    [reason] = broken_gates([parse_gate("lag>1s")], groups(document(closed), "a.json"))
    assert reason == "a.json: lag>1s: lag is not known (a closed loop has none)"


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ("p99.99>1s", "10 samples must be beyond it"),
        ("max>1s", "there is no latency"),
        ("cpu>1s", "only a run that started its server has it, and a merged one has not"),
    ],
)
def test_a_figure_that_is_not_known_has_a_reason(condition: str, why: str) -> None:
    run = replace(base(), server_cpu_per_echo=None, latency=Histogram.from_samples([]))
    [reason] = broken_gates([parse_gate(condition)], groups(document(run), "a"))
    assert reason == f"a: {condition}: {condition[:-3]} is not known ({why})"


def test_a_gate_on_losses_takes_a_number_or_a_share() -> None:
    run = replace(base(), counts=Counts(sent=1000, verified=998, wrong=0, lost=2))
    found = [
        bool(broken_gates([parse_gate(f"lost>{limit}")], groups(document(run))))
        for limit in ("1", "2", "0.1%", "0.2%")
    ]
    assert found == [True, False, True, False]


def test_a_share_of_losses_is_the_median_of_the_shares_and_may_be_the_limit() -> None:
    def run(seed: int, sent: int, lost: int) -> RunResult:
        counts = Counts(sent=sent, verified=sent - lost, wrong=0, lost=lost)
        return replace(base(), load=load(seed=seed), counts=counts)

    assert broken_gates([parse_gate("lost>0.7%")], groups(document(run(1, 1000, 7)))) == []
    group = groups(document(run(1, 100, 50), run(2, 100, 50), run(3, 10_000, 0)), "a")
    assert broken_gates([parse_gate("lost>1%")], group) == ["a: lost>1%: lost is 50% (median of 3 runs)"]


def test_a_gate_is_about_the_median_of_the_repetitions() -> None:
    group = repetitions([10, 20, 30])
    assert broken_gates([parse_gate("cpu>20us")], group) == []
    assert broken_gates([parse_gate("cpu>19us")], group) == ["a.json: cpu>19us: cpu is 20.0us (median of 3 runs)"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"interrupted": True}, "the run was interrupted"),
        ({"saturated": True}, "the run was saturated"),
        ({"generator": replace(result().generator, late=True)}, "the generator was late"),
    ],
)
def test_a_run_in_doubt_fails_every_gate(changes: dict[str, Any], reason: str) -> None:
    group = groups(document(replace(base(), **changes)), "a.json")
    assert broken_gates([parse_gate("p99>1h")], group) == [f"a.json: {reason}"]
    assert broken_gates([], group) == []


@pytest.mark.parametrize(
    ("condition", "change", "broken"),
    [
        ("cpu>+5%", 1.25, True),
        ("cpu>+25%", 1.25, False),  # within the interval
        ("cpu>+50%", 1.25, False),
        ("cpu<-5%", 0.8, True),
        ("cpu<-20%", 0.8, False),  # within the interval
        ("cpu<-5%", 1.25, False),
        ("cpu>+5%", 1, False),
    ],
)
def test_a_gate_against_a_baseline_fails_if_the_whole_interval_is_beyond(
    condition: str, change: float, broken: bool
) -> None:
    comparison = compared(costs(1), costs(2, change))
    reasons = broken_gates([parse_gate(condition)], [comparison.changed], [comparison])
    assert [reason.startswith(f"b.json: {condition}: cpu changed by ") for reason in reasons] == [True] * broken


def test_a_difference_without_one_of_the_medians_has_no_direction() -> None:
    comparison = compared([10] * 15, [10] * 8 + [20] * 7)
    assert (cpu(comparison).different, cpu(comparison).verdict) == (True, "different: equal medians")


def test_a_gate_against_a_baseline_passes_if_the_test_finds_no_difference() -> None:
    # One outlier of each: the resampled medians never show it, and the ranks do.
    comparison = compared([10] * 6 + [30], [12] * 6 + [9])
    assert (cpu(comparison).ratio.low, cpu(comparison).different) == (1.2, False)
    assert broken_gates([parse_gate("cpu>+5%")], [comparison.changed], [comparison]) == []


def test_a_gate_against_a_baseline_needs_one_and_four_runs_of_each() -> None:
    gate = parse_gate("cpu>+5%")
    with pytest.raises(UsageError, match=r"^'cpu>\+5%' needs a baseline: give its file first$"):
        broken_gates([gate], repetitions(costs(1)))
    few = compared(costs(1, count=3), costs(2, count=3))
    with pytest.raises(UsageError, match=r"needs 4 runs of each: there are 3 and 3$"):
        broken_gates([gate], [few.changed], [few])


def test_a_gate_against_a_baseline_fails_if_a_run_has_no_figure_or_0() -> None:
    many = compared(costs(1), costs(2))
    for metric in ("p99.99", "lost"):
        [line] = broken_gates([parse_gate(f"{metric}>+5%")], [many.changed], [many])
        assert line == f"b.json: {metric}>+5%: {metric} is 0 or not known in a run: there is no ratio"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("p99", "'p99' is not a condition: write like 'p99>5ms', "),
        ("p99=5ms", "'p99=5ms' is not a condition: write like"),
        ("p99>", "'p99>' is not a condition: write like"),
        ("p99>5", None),
        ("p99>fast", "'p99>fast' is not a condition: 'fast' is not a duration: "),
        ("p99>5%", "'p99>5%' is not a condition: a change has a sign, as in p99>+5%"),
        ("p100>5ms", "unknown metric 'p100': write a percentile like p99, or one of max, mean, lag, rate,"),
        ("speed>5", "unknown metric 'speed': "),
        ("rate<ten", "'rate<ten' is not a condition: 'ten' is not a rate: "),
    ],
)
def test_a_condition_that_is_none_is_one_line(text: str, line: str | None) -> None:
    if line is None:
        assert parse_gate(text).limit == 5
        return

    with pytest.raises(UsageError) as caught:
        parse_gate(text)
    assert str(caught.value).startswith(line)


def test_metrics_have_the_units_of_their_kind() -> None:
    shown = {
        name: find_metric(name).show(value)
        for name in ("p99", "rate", "lost")
        for value in [find_metric(name).of(base())]
        if value is not None
    }
    assert shown == {"p99": "325us", "rate": "1000/s", "lost": "0"}


def test_seven_pairs_are_tested_by_pairs_if_that_can_reach_a_verdict() -> None:
    """The smallest p-value of 7 pairs is 0.016: 4 metrics in a closed loop make it 0.06."""
    [one] = repetitions(costs(1, count=7), rounds=True, rate=None)
    [other] = repetitions(costs(2, 1.25, count=7), rounds=True, rate=None)
    each_metric, cpu_only = (compare(one, other, metrics, interleaved=True) for metrics in (COMPARED, ["cpu"]))
    assert (each_metric.paired, each_metric.test, cpu(each_metric).verdict) == (True, "Mann-Whitney", "higher")
    assert (cpu_only.paired, cpu_only.test, cpu(cpu_only).verdict) == (True, "Wilcoxon", "higher")
    assert cpu(each_metric).ratio == cpu(cpu_only).ratio
