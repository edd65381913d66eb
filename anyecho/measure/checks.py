"""The points that decide how far the figures of a run can be trusted, one line each."""

from __future__ import annotations

__all__ = ("Check", "checks", "duration_text", "failures", "p_text", "rate_text", "volume_text")

from collections.abc import Iterator
from typing import NamedTuple

from anyecho.measure.generator import lag_quantile
from anyecho.measure.result import STEADY_MIN, RunResult
from anyecho.units import counted, format_duration

#: Share of a core above which the generator itself may be the bottleneck.
_BUSY = 0.8
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_VOLUMES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


class Check(NamedTuple):
    """A point of a run: its name, a text with the figures, and whether it casts doubt on the run."""

    name: str
    text: str
    doubt: bool = False


def duration_text(seconds: float) -> str:
    """Return `seconds` with 3 digits: 63.4us, 1.20ms, 12.0s."""
    scale, unit = next((each for each in _UNITS if abs(seconds) >= each[0] * 0.9995), _UNITS[-1])
    value = seconds / scale
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}{unit}" if seconds else "0s"


def p_text(p: float | None) -> str:
    """Return a p-value with 3 decimals; "-" if there is none."""
    return "-" if p is None else f"{p:.3f}" if p >= 0.0005 else "<0.001"


def rate_text(rate: float) -> str:
    """Return a number of messages per second, with a decimal below 1000, and 3 digits below 1."""
    return f"{rate:.3g}/s" if 0 < rate < 1 else f"{rate:.1f}/s" if rate < 1000 else f"{rate:.0f}/s"


def volume_text(rate: float) -> str:
    """Return a number of bytes per second with 3 digits."""
    scale, unit = next((each for each in _VOLUMES if rate >= each[0] * 0.9995), _VOLUMES[-1])
    return f"{rate / scale:.3g} {unit}/s"


def checks(run: RunResult) -> list[Check]:
    """Return the points of `run`, in the order in which they are printed."""
    return [*_of_counts(run), *_of_schedule(run), *_of_generator(run), *_of_server(run), *_of_the_end(run)]


def failures(run: RunResult) -> list[str]:
    """Return why `run` passes no gate, whatever its figures are. Lost messages are in the figures."""
    reasons = []
    if run.generator.late:
        reasons.append("the generator was late")
    if run.saturated:
        reasons.append("the run was saturated")
    if run.ended_early:
        reasons.append("every connection was dropped before the end")
    if run.interrupted:
        reasons.append("the run was interrupted")
    if any(part.error.startswith("lost: ") for part in run.parts):
        reasons.append("a shard is missing")
    if run.counts.connect_failed:
        reasons.append(f"{counted(run.counts.connect_failed, 'connection')} failed")
    if run.counts.wrong:
        reasons.append("a reply was wrong")
    if not run.counts.verified:
        reasons.append("no reply was verified")

    return reasons


def _of_counts(run: RunResult) -> Iterator[Check]:
    counts = run.counts
    parts = [f"{getattr(counts, name)} {name}" for name in ("verified", "wrong", "lost")]
    if counts.outstanding:
        parts.append(f"{counts.outstanding} outstanding")
    extra = [
        f"{getattr(counts, name)} {name}" for name in ("late", "duplicates", "reordered") if getattr(counts, name)
    ]
    if counts.connect_failed:
        extra.append(f"{counted(counts.connect_failed, 'connection')} failed")
    doubt = counts.verified != counts.sent or bool(extra)
    yield Check("messages", f"{counts.sent} sent: {', '.join(parts)}{'; ' * bool(extra)}{', '.join(extra)}", doubt)
    asked = run.generator.asked_rate
    text = f"{rate_text(run.rate)} verified, {volume_text(run.rate * run.load.size)} each way"
    if asked is not None:
        text += f"; {rate_text(run.generator.achieved_rate)} sent of {rate_text(asked)} asked"
    off = run.generator.seconds_off_rate
    yield Check("rate", text + f"; {off} s missed the rate by more than 0.5%" * bool(off), bool(off))


def _of_schedule(run: RunResult) -> Iterator[Check]:
    load = run.load
    if load.rate is None:
        text = "closed loop: a message waits for an earlier reply, so a slow server is asked less often"
    else:
        text = f"open loop, {load.arrivals} gaps; due times are fixed before the run"
    if load.shard_count > 1:
        text += f"; shard {load.shard_index + 1} of {load.shard_count}"
    text += f"; seed {load.seed}; warm-up {format_duration(load.warm_up)}"
    if count := run.counts.from_warm_up:
        text += f", {count} of its replies came after it"
    yield Check("schedule", text)
    if stall := run.stall:
        longest, waited = duration_text(stall.longest), duration_text(stall.p99)
        hidden = duration_text(run.latency.value_at(0.99) / 1e9)
        text = f"replies took up to {longest}, and kept about {counted(stall.unsent, 'message')} from being sent"
        text += f": at a random time, the wait has a p99 of {waited}, not {hidden}; use --rate"
        yield Check("stall", text, doubt=True)
    if run.lag.count:
        quantile, late = lag_quantile(run.lag.count), run.generator.late
        lag, longest = (duration_text(each / 1e9) for each in (run.lag.value_at(quantile), run.lag.max))
        p50 = duration_text(run.latency.value_at(0.5) / 1e9)
        beside = f"beside a latency p50 of {p50}" if run.latency.count else "without any reply"
        verdict = "the generator was late" if late else "in time"
        yield Check("lag", f"p{quantile * 100:g} {lag}, max {longest}, {beside}: {verdict}", late)


def _of_generator(run: RunResult) -> Iterator[Check]:
    generator = run.generator
    busy = generator.cpu_share > _BUSY
    text = f"{generator.backend}, {generator.cpu_share:.0%} of a core{': it may be the bottleneck' * busy}"
    cores = counted(generator.cores, "core")
    text += f"; {cores}, {'pinned' if generator.pinned else 'not pinned'}; garbage collection {generator.gc}"
    if pauses := generator.gc_pauses:
        text += f", {counted(len(pauses), 'pause')} of at most {duration_text(max(pauses))}"
    yield Check("generator", text, busy)
    clock = generator.clock
    step, cost = duration_text(clock.step_ns / 1e9), duration_text(clock.cost_ns / 1e9)
    yield Check("clock", f"{clock.name}, step {step}, a reading takes {cost}")


def _of_server(run: RunResult) -> Iterator[Check]:
    if (spread := run.spread) and not spread.messages_max:
        yield Check("connections", "no replies on any", doubt=True)
    elif spread:
        text = f"{spread.messages_min} to {spread.messages_max} replies each"
        if spread.p50_min is not None and spread.p50_max is not None:
            text += f", p50 {duration_text(spread.p50_min)} to {duration_text(spread.p50_max)}"
        yield Check("connections", f"{text}, Jain index {spread.jain:.3f}", spread.jain < 0.9)
    steady = run.steadiness
    if steady.steady is None or steady.halves_p is None or steady.trend_p is None or steady.trend_rho is None:
        yield Check(
            "steadiness",
            "not known of a merged run" if run.parts and run.seconds >= STEADY_MIN else "too short to tell",
        )
    else:
        text = f"halves p {p_text(steady.halves_p)}, trend {steady.trend_rho:+.2f} (p {p_text(steady.trend_p)})"
        yield Check("steadiness", f"{'steady' if steady.steady else 'not steady'}: {text}", not steady.steady)
    if run.server_cpu_per_echo is not None:
        yield Check("server", f"{duration_text(run.server_cpu_per_echo)} of CPU per echo")


def _of_the_end(run: RunResult) -> Iterator[Check]:
    if run.saturated:
        yield Check(
            "saturated", "a queue of due messages became full: the server cannot hold this rate", doubt=True
        )
    if run.ended_early:
        text = "every connection was dropped before the end: the rest of the load was not sent"
        yield Check("dropped", text, doubt=True)
    if run.interrupted or run.error:
        partial = "interrupted; the figures are of a part of the run" if run.interrupted else ""
        reason = run.error if run.error != "interrupted" else ""
        yield Check("error" if reason else "end", "; ".join(filter(None, (reason, partial))), doubt=True)
    for note in run.notes:
        yield Check("note", note)
