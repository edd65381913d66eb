"""Merge results of parts of one load: shards of a schedule, or generators that ran at the same time.

Counts and histograms are added exactly. A figure that cannot be added, as the median of a second, is dropped.
"""

from __future__ import annotations

__all__ = ("join_documents", "merge_documents", "merge_runs")

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import zip_longest
from statistics import fmean
from types import MappingProxyType

from anyecho.errors import UsageError
from anyecho.measure.histogram import Histogram
from anyecho.measure.omission import Stall
from anyecho.measure.parts import parts_of
from anyecho.measure.result import Counts, Document, Generator, Load, RunResult, Second, Spread, Steadiness

#: Seconds between the first and the last start of shards that began together, at most.
_TOGETHER = 0.1
#: Fields that may differ between parts.
_OF_THE_PART = {"connections", "rate", "seed", "shard_index", "requests"}


def join_documents(documents: Sequence[Document]) -> Document:
    """Return a document with the runs of all `documents`, each on its own, on the machine of the first."""
    return replace(documents[0], runs=tuple(run for each in documents for run in each.runs))


def merge_documents(documents: Sequence[Document]) -> Document:
    """Return a document with one run, merged from all runs of `documents`. Raises as `merge_runs` does."""
    joined = join_documents(documents)
    return replace(joined, runs=(merge_runs(joined.runs),))


def merge_runs(
    runs: Sequence[RunResult], names: Sequence[str] = (), lost: Mapping[int, str] = MappingProxyType({})
) -> RunResult:
    """Return the result of all `runs` as if one generator had made them.

    `names` are those of all shards, by their number; `lost` says why shards are not among `runs`.

    Raises:
        UsageError: there are no runs; they are parts of different loads; or a shard is there twice.
    """
    if not runs:
        raise UsageError("there is no run to merge")

    _check_parts(runs)
    load, sharded = runs[0].load, runs[0].load.shard_count > 1
    uncorrected = Histogram.merged(run.uncorrected for run in runs)
    return RunResult(
        load=replace(
            load,
            connections=sum(run.load.connections for run in runs),
            rate=load.rate if sharded else _added(run.load.rate for run in runs),
            requests=load.requests if sharded else _added_whole(run.load.requests for run in runs),
            shard_index=0,
            shard_count=1,
        ),
        counts=Counts(
            **{each.name: sum(getattr(run.counts, each.name) for run in runs) for each in fields(Counts)}
        ),
        started_at=min(run.started_at for run in runs),
        seconds=max(run.seconds for run in runs),
        latency=Histogram.merged(run.latency for run in runs),
        uncorrected=uncorrected,
        lag=Histogram.merged(run.lag for run in runs),
        generator=_merge_generators([run.generator for run in runs], load.rate if sharded else None),
        per_second=_merge_seconds([run.per_second for run in runs]),
        spread=_merge_spreads(runs),
        steadiness=_merge_steadiness(runs),
        stall=Stall.of(uncorrected) if load.rate is None else None,
        server_cpu_per_echo=runs[0].server_cpu_per_echo if len(runs) == 1 else None,
        parts=parts_of(runs, names, {**lost, **dict.fromkeys(_missing(runs, lost), "no result")}),
        round=runs[0].round,
        interrupted=any(run.interrupted for run in runs),
        saturated=any(run.saturated for run in runs),
        ended_early=any(run.ended_early for run in runs),
        error="; ".join(dict.fromkeys(filter(None, _errors(runs, lost)))),
        notes=tuple(dict.fromkeys(note for run in runs for note in run.notes)),
    )


def _errors(runs: Sequence[RunResult], lost: Mapping[int, str]) -> Iterator[str]:
    count = runs[0].load.shard_count
    yield from (run.error for run in runs)
    yield from (f"shard {index + 1} of {count} was lost: {reason}" for index, reason in sorted(lost.items()))
    if count > 1 and (missing := _missing(runs, lost)):
        text = ", ".join(str(index + 1) for index in missing)
        yield f"of {count} shards, {'these are' if len(missing) > 1 else 'one is'} missing: {text}"
    starts = [run.started_at for run in runs]
    apart = max(starts) - min(starts)
    if apart > _TOGETHER and not any(run.interrupted for run in runs):
        what, effect = ("runs", "they were not one load")
        if count > 1:
            is_closed = runs[0].load.rate is None
            what, effect = "shards", effect if is_closed else "their messages are not one schedule"
        yield f"the {what} began {apart:.3f} s apart: {effect}"


def _missing(runs: Sequence[RunResult], lost: Mapping[int, str]) -> list[int]:
    """Return the numbers of shards of which nothing is known."""
    return sorted({*range(runs[0].load.shard_count)} - {run.load.shard_index for run in runs} - {*lost})


def _check_parts(runs: Sequence[RunResult]) -> None:
    first = runs[0].load
    for run in runs[1:]:
        for each in fields(Load):
            one, other = getattr(first, each.name), getattr(run.load, each.name)
            if each.name not in _OF_THE_PART and one != other:
                raise UsageError(f"cannot merge runs of different loads: {each.name} is {one} and {other}")
        if (first.rate is None) != (run.load.rate is None):
            raise UsageError("cannot merge an open loop and a closed loop")
    if first.shard_count > 1:
        if len({(run.load.rate, run.load.seed, run.load.requests) for run in runs}) > 1:
            raise UsageError("cannot merge shards of different schedules: their rates or seeds differ")
        numbers = [run.load.shard_index for run in runs]
        if twice := [number for number in numbers if numbers.count(number) > 1]:
            raise UsageError(f"cannot merge: shard {twice[0] + 1} of {first.shard_count} is there twice")
    if any(runs.count(run) > 1 for run in runs):
        raise UsageError("cannot merge: a run is there twice")


def _added(values: Iterable[float | None]) -> float | None:
    present = [each for each in values if each is not None]
    return sum(present) if present else None


def _added_whole(values: Iterable[int | None]) -> int | None:
    present = [each for each in values if each is not None]
    return sum(present) if present else None


def _merge_generators(generators: Sequence[Generator], rate: float | None) -> Generator:
    """Return the sum of the rates, and the worst of every figure that tells of trouble.

    `rate` is that asked of all, also of those that are missing, if it is known.
    """
    return replace(
        generators[0],
        cpu_share=max(each.cpu_share for each in generators),
        cores=min(each.cores for each in generators),
        pinned=all(each.pinned for each in generators),
        late=any(each.late for each in generators),
        gc="on" if any(each.gc == "on" for each in generators) else "off",
        gc_pauses=tuple(pause for each in generators for pause in each.gc_pauses),
        host=generators[0].host if len({each.host for each in generators}) == 1 else "",
        asked_rate=_added(each.asked_rate for each in generators) if rate is None else rate,
        achieved_rate=sum(each.achieved_rate for each in generators),
        seconds_off_rate=max(each.seconds_off_rate for each in generators),
    )


def _merge_seconds(parts: Sequence[Sequence[Second]]) -> tuple[Second, ...]:
    if len(parts) == 1:
        return tuple(parts[0])

    by_start: defaultdict[float, list[Second]] = defaultdict(list)
    for seconds in parts:
        for each in seconds:
            by_start[each.start].append(each)
    return tuple(
        Second(
            start=start,
            verified=sum(each.verified for each in seconds),
            bytes=sum(each.bytes for each in seconds),
            levels=tuple(map(sum, zip_longest(*(each.levels for each in seconds), fillvalue=0))),
        )
        for start, seconds in sorted(by_start.items())
    )


def _merge_steadiness(runs: Sequence[RunResult]) -> Steadiness:
    """Return the verdict by the mean of the medians that the generators had in each whole second."""
    if len(runs) == 1:
        return runs[0].steadiness

    whole = min(int(run.seconds) for run in runs)
    seconds = zip(*(run.per_second[:whole] for run in runs), strict=False)
    medians = [[each.p50 for each in second if each.p50 is not None] for second in seconds]
    return Steadiness.of([fmean(each) for each in medians if len(each) == len(runs)])


def _merge_spreads(runs: Sequence[RunResult]) -> Spread | None:
    """Return the extremes, and Jain's index over all connections; None if it is not known of all."""
    spreads = [each for each in map(_spread_of, runs) if each is not None]
    if len(spreads) < len(runs) or sum(run.load.connections for run in runs) < 2:
        return None

    lows = [each.p50_min for each in spreads if each.p50_min is not None]
    highs = [each.p50_max for each in spreads if each.p50_max is not None]
    return Spread(
        messages_min=min(each.messages_min for each in spreads),
        messages_max=max(each.messages_max for each in spreads),
        p50_min=min(lows, default=None),
        p50_max=max(highs, default=None),
        jain=_merge_jain(runs, [each.jain for each in spreads]),
    )


def _spread_of(run: RunResult) -> Spread | None:
    count = run.counts.verified
    if run.spread is not None or run.load.connections > 1:
        return run.spread

    p50 = run.latency.value_at(0.5) / 1e9 if count else None
    return Spread(messages_min=count, messages_max=count, p50_min=p50, p50_max=p50, jain=1.0)


def _merge_jain(runs: Sequence[RunResult], indices: Sequence[float]) -> float:
    # The index is total**2 / (connections * squares), and so tells the sum of the squares.
    total = sum(run.counts.verified for run in runs)
    connections = sum(run.load.connections for run in runs)
    squares = sum(
        run.counts.verified**2 / (run.load.connections * jain) for run, jain in zip(runs, indices, strict=True)
    )
    return total**2 / (connections * squares) if squares else 1.0
