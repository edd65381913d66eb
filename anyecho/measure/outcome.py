"""The result of a run: its samples, and how far they can be trusted."""

from __future__ import annotations

__all__ = ("Measured", "generator_of", "off_rate", "result_of")

import platform
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from anyecho.measure.generator import cores_available, is_late, measure_clock
from anyecho.measure.histogram import MAX_VALUE, Histogram
from anyecho.measure.omission import Stall
from anyecho.measure.result import Counts, Generator, Load, RunResult, Spread, Steadiness
from anyecho.measure.samples import Record, Samples, evaluate
from anyecho.units import counted, format_duration

_SECOND = 1_000_000_000
#: Tolerance of the rate in a second, and of the whole run.
RATE_TOLERANCE = 0.005
#: A little more than a server of anyecho echoes to one source by default.
_UDP_RATE, _UDP_BURST = 110, 220


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run left behind. Times are nanoseconds of its clock."""

    records: Sequence[Record]
    #: The measurement began, the last message was due or could be sent, and the run was over.
    start: int
    end: int
    now: int
    started_at: float
    timeout: int | None
    lags: Sequence[int]
    cpu_share: float
    #: CPU time of the server while the load was measured; None if it is not known.
    server_cpu: int | None = None
    is_pinned: bool
    backend: str
    #: What went wrong with a message; and what else did.
    failure: str = ""
    other_failures: Sequence[str] = ()
    connect_failed: int = 0
    interrupted: bool = False
    saturated: bool = False
    ended_early: bool = False


def result_of(measured: Measured, load: Load) -> RunResult:
    """Evaluate the stamps of a run of `load`."""
    samples = evaluate(
        measured.records,
        start=measured.start,
        now=measured.now,
        timeout=measured.timeout,
        interrupted=measured.interrupted,
    )
    latency, uncorrected, lag = map(_histogram, (samples.corrected, samples.uncorrected, measured.lags))
    per_second = samples.per_second(load.size)
    over = measured.now if samples.lost or not samples.last_received else samples.last_received
    whole = int((measured.end - measured.start) / _SECOND)
    return RunResult(
        load=load,
        counts=_counts(measured, samples),
        started_at=measured.started_at,
        seconds=max(over - measured.start, 0) / 1e9,
        latency=latency,
        uncorrected=uncorrected,
        lag=lag,
        generator=generator_of(measured, load, samples, is_late=is_late(lag, latency)),
        per_second=per_second,
        spread=Spread.of(samples.messages, [median / 1e9 for median in samples.medians]),
        steadiness=Steadiness.of([each.p50 for each in per_second[:whole] if each.p50 is not None]),
        stall=_stall(samples, uncorrected) if load.rate is None else None,
        server_cpu_per_echo=_per_echo(measured.server_cpu, samples),
        interrupted=measured.interrupted,
        saturated=measured.saturated,
        ended_early=measured.ended_early,
        error="; ".join(
            filter(None, (measured.failure or _first_lost(samples, measured), *measured.other_failures))
        ),
        notes=tuple(_notes(measured, samples, load)),
    )


def _histogram(samples: Sequence[int]) -> Histogram:
    if max(samples, default=0) > MAX_VALUE:  # only without a timeout
        samples = [min(each, MAX_VALUE) for each in samples]
    return Histogram.from_samples(samples)


def _counts(measured: Measured, samples: Samples) -> Counts:
    return Counts(
        sent=samples.sent,
        verified=samples.verified,
        wrong=samples.wrong,
        lost=samples.lost,
        outstanding=samples.outstanding,
        late=samples.late,
        duplicates=sum(each.duplicates for each in measured.records),
        reordered=sum(each.reordered for each in measured.records),
        connect_failed=measured.connect_failed,
        from_warm_up=len(samples.overlaps),
    )


def _stall(samples: Samples, uncorrected: Histogram) -> Stall | None:
    # The first messages wait for the replies to the warm-up: a stall may have begun in it.
    return Stall.of(Histogram.merged([uncorrected, _histogram(samples.overlaps)]))


def _per_echo(server_cpu: int | None, samples: Samples) -> float | None:
    replies = samples.verified + samples.wrong + samples.late
    return None if server_cpu is None or not replies else server_cpu / replies / 1e9


def _first_lost(samples: Samples, measured: Measured) -> str:
    if not samples.first_lost:
        return ""

    limit = "" if measured.timeout is None else f" within {measured.timeout / 1e9:g} s"
    return f"{samples.first_lost} had no reply{limit}"


def generator_of(measured: Measured, load: Load, samples: Samples, *, is_late: bool) -> Generator:
    """Return what the generator did, by the stamps of the messages."""
    asked = None if load.rate is None else load.rate / load.shard_count
    span = max(measured.end - measured.start, 1)
    if asked is None:
        achieved = samples.sent / (max(samples.last_sent - measured.start, 1) / 1e9)
    else:
        # By the number of messages due, which random gaps make differ from the rate.
        # A connection that was dropped in the warm-up has sent fewer than were due before the start.
        sent = sum(max(len(each.sent) - bisect_left(each.due, measured.start), 0) for each in measured.records)
        stretch = max((samples.last_sent - measured.start) / span, 1.0)
        achieved = asked * sent / max(samples.sent, 1) / stretch

    return Generator(
        backend=measured.backend,
        host=platform.node(),
        clock=measure_clock(),
        cpu_share=measured.cpu_share,
        cores=cores_available(),
        pinned=measured.is_pinned,
        late=is_late,
        asked_rate=asked,
        achieved_rate=achieved,
        seconds_off_rate=0 if asked is None else off_rate(measured.records, measured.start, span // _SECOND),
    )


def off_rate(records: Sequence[Record], start: int, seconds: int) -> int:
    """Return in how many `seconds` after `start` the messages sent differ by 0.5 % from those due."""
    count = 0
    for number in range(seconds):
        begin, end = start + number * _SECOND, start + (number + 1) * _SECOND
        due = sum(bisect_left(each.due, end) - bisect_left(each.due, begin) for each in records)
        sent = sum(bisect_left(each.sent, end) - bisect_left(each.sent, begin) for each in records)
        count += abs(sent - due) > max(RATE_TOLERANCE * due, 1)

    return count


def _notes(measured: Measured, samples: Samples, load: Load) -> list[str]:
    notes = []
    if count := samples.warm_up_failures:
        notes.append(f"wrong or lost in the warm-up: {counted(count, 'message')}")
    if max(samples.corrected, default=0) > MAX_VALUE:
        notes.append(f"latencies above {format_duration(MAX_VALUE / 1e9)} are counted as that")
    seconds = max(measured.now - measured.start, 1) / 1e9
    if load.transport == "udp" and samples.lost and samples.verified < _UDP_RATE * seconds + _UDP_BURST:
        notes.append("a server of anyecho limits the datagrams of each source (--udp-rate): a cause of loss")
    if cores_available() == 1 and not measured.is_pinned:
        notes.append("the load has one core: on this machine, the server shares it")

    return notes
