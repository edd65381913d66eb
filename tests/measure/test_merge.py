"""Merged shards give the figures of one run, exactly; what is missing or twice is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from anyecho.errors import UsageError
from anyecho.measure.histogram import Histogram
from anyecho.measure.merge import merge_documents, merge_runs
from anyecho.measure.result import Counts, RunResult, Spread, Steadiness
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


def test_medians_of_seconds_and_steadiness_of_shards_are_dropped() -> None:
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
    assert (merged.error, merged.interrupted) == (error, True)


def test_generators_without_shards_add_their_rates() -> None:
    merged = merge_runs([part(0, 1), part(0, 1)])
    assert (merged.load.rate, merged.generator.asked_rate, merged.generator.achieved_rate) == (2000, 2000, 2000)
    assert merged.counts.sent == 6000
    assert merged.error == ""


def test_the_worst_figures_of_the_generators_are_kept() -> None:
    one = part(0, 2)
    busy = replace(one.generator, cpu_share=0.9, late=True, gc="on", gc_pauses=(0.1,), seconds_off_rate=3, cores=1)
    other = replace(part(1, 2), generator=busy, interrupted=True, saturated=True, notes=("a note",), seconds=9.0)
    generator = merge_runs([one, other]).generator
    assert (generator.cpu_share, generator.late, generator.gc, generator.gc_pauses) == (0.9, True, "on", (0.1,))
    assert (generator.seconds_off_rate, generator.cores) == (3, 1)
    merged = merge_runs([one, other])
    assert (merged.interrupted, merged.saturated, merged.notes, merged.seconds) == (True, True, ("a note",), 9)


def test_the_spread_has_the_extremes_of_all_parts() -> None:
    one = replace(part(0, 2), spread=Spread.of((5, 9), (0.1, 0.3)))
    other = replace(part(1, 2), spread=Spread.of((7, 8), (0.05, 0.2)))
    assert merge_runs(
        [
            one,
            other,
        ]
    ).spread == replace(Spread.of((5, 9), (0.05, 0.3)) or pytest.fail("no spread"))
    assert merge_runs([replace(one, spread=None), replace(other, spread=None)]).spread is None


@pytest.mark.parametrize(
    ("runs", "line"),
    [
        ([], "there is no run to merge"),
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
