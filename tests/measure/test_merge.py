"""Merged shards give the figures of one run, exactly; what is missing or twice is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from anyecho.errors import UsageError
from anyecho.measure.bench import run_bench
from anyecho.measure.checks import failures
from anyecho.measure.histogram import Histogram
from anyecho.measure.merge import merge_documents, merge_runs
from anyecho.measure.options import BenchOptions
from anyecho.measure.result import Counts, RunResult, Second, Spread, Steadiness
from anyecho.server.server import Server
from tests.measure.results import document, latencies, load, result, second

SAMPLES = latencies(1)


def part(index: int, count: int, **fields: Any) -> RunResult:
    """Return the shard with every `count`-th of `SAMPLES`."""
    own = [samples[index::count] for samples in SAMPLES]
    flat = [each for samples in own for each in samples]
    return replace(
        result(),
        load=load(connections=2, shard_index=index, shard_count=count, **fields),
        counts=Counts(sent=len(flat), verified=len(flat), wrong=0, lost=0),
        latency=Histogram.from_samples(flat),
        uncorrected=Histogram.from_samples(flat),
        lag=Histogram.from_samples([each // 20 for each in flat]),
        per_second=tuple(second(float(start), samples) for start, samples in enumerate(own)),
    )


def another(run: RunResult) -> RunResult:
    """Return an equal run of another generator, at almost the same time."""
    return replace(run, started_at=run.started_at + 0.01)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_shards_have_the_percentiles_counts_and_levels_of_the_whole(count: int) -> None:
    [whole], merged = [part(0, 1)], merge_runs([part(index, count) for index in reversed(range(count))])

    assert (merged.latency, merged.uncorrected, merged.lag) == (whole.latency, whole.uncorrected, whole.lag)
    assert [merged.latency.quantile(each) for each in (0.5, 0.99)] == [
        whole.latency.quantile(each) for each in (0.5, 0.99)
    ]
    assert merged.counts == whole.counts
    assert [(each.start, each.verified, each.bytes, each.levels) for each in merged.per_second] == [
        (each.start, each.verified, each.bytes, each.levels) for each in whole.per_second
    ]
    assert merged.load == replace(whole.load, connections=2 * count)


def long_part(index: int, medians: Sequence[float]) -> RunResult:
    """Return a shard of 2 with these medians of its seconds."""
    seconds = [Second(start=float(start), verified=9, bytes=576, p50=p50) for start, p50 in enumerate(medians)]
    return replace(part(index, 2), per_second=tuple(seconds), seconds=float(len(seconds)))


def test_merged_shards_are_steady_if_the_means_of_their_medians_are() -> None:
    noise = [(1 + step * 7 % 5 / 100) * 1e-4 for step in range(12)]
    grown = [median * (1 + step / 10) for step, median in enumerate(noise)]
    cases = [(noise, noise, True), (noise, grown, False), (grown, grown, False)]
    merged = [merge_runs([long_part(0, one), long_part(1, other)]) for one, other, _ in cases]
    assert [each.steadiness.steady for each in merged] == [steady for _, _, steady in cases]
    assert merge_runs([merged[0], another(merged[0])]).steadiness == Steadiness()


def test_medians_of_seconds_of_shards_are_dropped_and_three_seconds_have_no_verdict() -> None:
    merged = merge_runs([part(index, 2) for index in range(2)])
    assert {each.p50 for each in merged.per_second} == {None}
    assert (merged.steadiness, merged.server_cpu_per_echo) == (Steadiness(), None)
    alone = part(0, 1)
    assert merge_runs([alone]) == alone


@pytest.mark.parametrize(
    ("present", "error"),
    [((0, 2), "of 3 shards, one is missing: 2"), ((1,), "of 3 shards, these are missing: 1, 3")],
)
def test_a_missing_shard_is_an_error_of_the_merged_run(present: tuple[int, ...], error: str) -> None:
    merged = merge_runs([part(index, 3) for index in present])
    assert (merged.error, merged.interrupted) == (error, False)
    assert len(merged.parts) == 3
    assert failures(merged) == ["a shard is missing"]
    assert failures(merge_runs([part(index, 3) for index in range(3)])) == []


def test_generators_without_shards_add_their_rates() -> None:
    merged = merge_runs([part(0, 1), another(part(0, 1))])
    assert (merged.load.rate, merged.generator.asked_rate, merged.generator.achieved_rate) == (2000, 2000, 2000)
    assert merged.counts.sent == 6000
    assert merged.error == ""


def test_the_worst_figures_of_the_generators_are_kept() -> None:
    one = part(0, 2)
    busy = replace(one.generator, cpu_share=0.9, late=True, gc="on", gc_pauses=(0.1,), seconds_off_rate=3, cores=1)
    other = replace(
        part(1, 2),
        generator=busy,
        interrupted=True,
        saturated=True,
        ended_early=True,
        notes=("a note",),
        seconds=9.0,
    )
    generator = merge_runs([one, other]).generator
    assert (generator.cpu_share, generator.late, generator.gc, generator.gc_pauses) == (0.9, True, "on", (0.1,))
    assert (generator.seconds_off_rate, generator.cores) == (3, 1)
    merged = merge_runs([one, other])
    assert merged.ended_early
    assert (merged.interrupted, merged.saturated, merged.notes, merged.seconds) == (True, True, ("a note",), 9)


def with_connections(index: int, *messages: int) -> RunResult:
    """Return shard `index` of 2, which verified so many messages on each connection."""
    run = part(index, 2)
    total, p50s = sum(messages), [0.1 * (index + 1), *[0.3] * (len(messages) - 1)]
    return replace(
        run,
        load=replace(run.load, connections=len(messages)),
        counts=Counts(sent=total, verified=total, wrong=0, lost=0),
        latency=Histogram.from_samples([100_000_000 * (index + 1)] * total),
        spread=Spread.of(messages, p50s),
    )


@pytest.mark.parametrize(("one", "other"), [((5, 9), (7, 8, 1)), ((4,), (3,)), ((4,), (3, 5)), ((0, 0), (0, 4))])
def test_the_spread_of_shards_is_that_of_all_their_connections(
    one: tuple[int, ...], other: tuple[int, ...]
) -> None:
    merged = merge_runs([with_connections(0, *one), with_connections(1, *other)]).spread
    whole = Spread.of([*one, *other], [])
    assert merged is not None
    assert whole is not None
    assert (merged.messages_min, merged.messages_max) == (whole.messages_min, whole.messages_max)
    assert merged.jain == pytest.approx(whole.jain)
    assert merged.p50_min == pytest.approx(0.1, rel=0.002)


def test_the_spread_of_parts_is_unknown_if_that_of_one_is() -> None:
    assert merge_runs([with_connections(0, 1, 2), replace(with_connections(1, 1, 2), spread=None)]).spread is None


def test_a_merged_run_has_a_row_for_each_shard_and_for_those_lost() -> None:
    other = replace(part(2, 3), error="an error", counts=Counts(sent=1001, verified=1000, wrong=0, lost=1))
    merged = merge_runs([other, part(0, 3)], ["a", "b", "c"], {1: "it is gone"})
    assert [(each.name, each.connections, each.sent, each.verified, each.error) for each in merged.parts] == [
        ("a", 2, 1002, 1002, ""),
        ("b", 0, 0, 0, "lost: it is gone"),
        ("c", 2, 1001, 1000, "an error"),
    ]
    assert merged.error == "an error; shard 2 of 3 was lost: it is gone"
    assert merged.generator.asked_rate == 1000
    assert [each.name for each in merge_runs([part(0, 2), part(1, 2)]).parts] == ["shard 1 of 2", "shard 2 of 2"]
    assert [each.name for each in merge_runs([part(0, 1), another(part(0, 1))]).parts] == [
        "generator 1",
        "generator 2",
    ]


def test_merged_runs_keep_their_rows_when_they_are_merged() -> None:
    merged = merge_runs([part(0, 2), part(1, 2)])
    assert len(merge_runs([merged, another(merged)]).parts) == 4
    assert merge_runs([merged]) == merged


@pytest.mark.parametrize(("apart", "is_error"), [(0.09, False), (0.11, True)])
def test_shards_that_did_not_begin_together_are_an_error(apart: float, is_error: bool) -> None:
    one = part(0, 2)
    other = replace(part(1, 2), started_at=one.started_at + apart)
    line = "the shards began 0.110 s apart: their messages are not one schedule"
    closed = [replace(run, load=replace(run.load, rate=None)) for run in (one, other)]
    assert merge_runs(closed).error == (
        "the shards began 0.110 s apart: they were not one load" if is_error else ""
    )
    assert merge_runs([one, other]).error == (line if is_error else "")
    assert merge_runs([replace(one, interrupted=True), other]).error == ""


def test_runs_one_after_the_other_are_no_single_load() -> None:
    line = "the runs began 30.000 s apart: they were not one load"
    later = replace(result(), started_at=result().started_at + 30)
    assert merge_runs([result(), later]).error == line


@pytest.mark.parametrize(
    ("runs", "line"),
    [
        ([], "there is no run to merge"),
        ([result(2), result(1), result(1)], "cannot merge: a run is there twice"),
        ([part(0, 2), part(0, 2)], "cannot merge: shard 1 of 2 is there twice"),
        ([part(0, 1), part(0, 1, size=1024)], "cannot merge runs of different loads: size is 64 and 1024"),
        ([part(0, 2), part(1, 3)], "cannot merge runs of different loads: shard_count is 2 and 3"),
        ([part(0, 1), part(0, 1, rate=None)], "cannot merge an open loop and a closed loop"),
        (
            [part(0, 2), part(1, 2, seed=7)],
            "cannot merge shards of different schedules: their rates or seeds differ",
        ),
    ],
)
def test_parts_of_different_loads_are_refused(runs: list[RunResult], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        merge_runs(runs)
    assert str(caught.value) == line


def test_documents_are_merged_into_one_run() -> None:
    merged = merge_documents([document(part(0, 2)), document(part(1, 2))])
    assert [run.counts.sent for run in merged.runs] == [3000]
    assert merged.machine == document().machine


async def test_two_shards_of_a_real_run_send_the_whole_schedule(server: Server) -> None:
    options = BenchOptions(connections=2, rate=2000.0, requests=101, warmup=0)
    runs = [await run_bench(server.address, options, shard=(index, 2)) for index in range(2)]
    # One after the other; shards that are no test begin together.
    merged = merge_runs([replace(run, started_at=runs[0].started_at) for run in runs])

    assert [run.counts.verified for run in runs] == [51, 50]
    assert (merged.counts.sent, merged.counts.verified, merged.latency.count, merged.lag.count) == (101,) * 4
    assert (merged.load.connections, merged.load.rate, merged.error) == (4, 2000, "")
    assert merged.generator.asked_rate == pytest.approx(2000)
    assert sum(each.verified for each in merged.per_second) == 101
