"""What `ping` prints: lines in the manner of ping(8), or an object a line (JSON)."""

from __future__ import annotations

__all__ = ("JSONLines", "TextLines", "progress_line")

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from anyecho.measure.ping import Ping
from anyecho.measure.ping_figures import PingFigures, figures_of
from anyecho.measure.probes import Connected, Event, Failed, Lost, ProbeCounts, Reply, Wrong

#: Counts that ping(8) and this one show only if there are any, and their words.
_ODDITIES = {
    "duplicates": "duplicates",
    "wrong": "corrupted",
    "errors": "errors",
    "late": "late",
    "reordered": "out of order",
    "stray": "stray",
    "reconnects": "reconnects",
}


class TextLines:
    """Lines for `ping`. With `quiet`, only the first and the summary; with `timestamps`, Unix time before each."""

    def __init__(self, ping: Ping, *, quiet: bool = False, timestamps: bool = False) -> None:
        self._ping = ping
        self._quiet = quiet
        self._timestamps = timestamps
        self._peer = str(ping.address)
        self._has_begun = False

    def event(self, event: Event) -> Iterator[str]:
        """Yield the lines of `event`."""
        first = event.peer if isinstance(event, Connected) else ""
        if not self._has_begun:
            yield from self._begin(first)
        if not self._quiet:
            stamp = f"[{time.time():.6f}] " if self._timestamps else ""
            yield from (stamp + line for line in self._lines(event, is_first=not self._has_begun))
        self._has_begun = True
        self._peer = first or self._peer

    def _begin(self, peer: str) -> Iterator[str]:
        via = f" ({peer})" if peer and peer != str(self._ping.address) else ""
        yield f"PING {self._ping.address}{via} {self._ping.options.size} bytes of data."

    def _lines(self, event: Event, *, is_first: bool) -> Iterator[str]:
        if isinstance(event, Reply):
            yield self._reply(event)
        elif isinstance(event, Lost):
            yield f"no answer from {self._peer}: seq={event.number}"
        elif isinstance(event, Wrong):
            which = "" if event.number is None else f" seq={event.number}"
            yield f"wrong answer from {self._peer}:{which} {event.reason}"
        elif isinstance(event, Failed):
            which = f": lost seq={_ranges(event.numbers)}" if event.numbers else ""
            yield f"{event.reason}{which}"
        elif not is_first:
            yield f"{'reconnected' if event.again else 'connected'} to {event.peer}"

    def _reply(self, reply: Reply) -> str:
        words = {"late": "late", "DUP!": "duplicate", "out of order": "reordered"}
        flags = "".join(f" ({word})" for word, name in words.items() if getattr(reply, name))
        steps = ", ".join(f"{name} {_milliseconds(duration)}" for name, duration in reply.steps.items())
        size = self._ping.options.size
        latency = _milliseconds(reply.latency)
        line = f"{size} bytes from {self._peer}: seq={reply.number} time={latency} ms{flags}"
        return f"{line} ({steps})" if steps else line

    def summary(self) -> Iterator[str]:
        """Yield the lines of the summary."""
        if not self._has_begun:
            yield from self._begin("")
        probes, counts = self._ping.probes, self._ping.probes.counts
        extra = "".join(
            f", +{getattr(counts, name)} {word}" for name, word in _ODDITIES.items() if getattr(counts, name)
        )
        yield ""
        yield f"--- {self._ping.address} ping statistics ---"
        yield (
            f"{counts.transmitted} packets transmitted, {counts.received} received{extra}, "
            f"{_loss(counts) * 100:g}% packet loss, time {probes.duration // 1_000_000}ms"
        )
        if (figures := figures_of(probes.latencies)) is None:
            return

        for name, latencies in probes.steps.items():
            if (of_step := figures_of(latencies)) is not None:
                yield f"{name} {_min_avg_max_mdev(of_step)}"
        yield f"rtt {_min_avg_max_mdev(figures)}"
        quantiles = "/".join(map(_or_dash, (figures.p50, figures.p95, figures.p99)))
        yield f"rtt p50/p95/p99 = {quantiles} ms"
        yield f"jitter (p95 - p50) = {_or_dash(figures.jitter)} ms"


class JSONLines:
    """An object for each probe, one more for each late or duplicate reply, and the summary at the end."""

    def __init__(self, ping: Ping) -> None:
        self._ping = ping

    def event(self, event: Event) -> Iterator[str]:
        """Yield the lines of `event`."""
        now = time.time()
        if isinstance(event, Reply):
            kind = "late" if event.late else "duplicate" if event.duplicate else "reply"
            fields: dict[str, Any] = {"rtt": event.latency / 1e9}
            if not (event.late or event.duplicate):
                fields["reordered"] = event.reordered
            if event.steps:
                fields["steps"] = {name: duration / 1e9 for name, duration in event.steps.items()}
            yield _object(kind, seq=event.number, time=now, **fields)
        elif isinstance(event, Lost):
            yield _object("lost", seq=event.number, time=now, reason="no answer")
        elif isinstance(event, Wrong):
            yield _object("wrong", seq=event.number, time=now, reason=event.reason)
        elif isinstance(event, Failed):
            for number in event.numbers:
                yield _object("lost", seq=number, time=now, reason=event.reason)

    def summary(self) -> Iterator[str]:
        """Yield the object of the summary."""
        probes, counts = self._ping.probes, self._ping.probes.counts
        steps = {name: _figures(latencies) for name, latencies in probes.steps.items()}
        yield _object(
            "summary",
            address=str(self._ping.address),
            size=self._ping.options.size,
            **asdict(counts),
            loss=_loss(counts),
            seconds=probes.duration / 1e9,
            rtt=_figures(probes.latencies),
            **({"steps": steps} if steps else {}),
        )


def progress_line(ping: Ping) -> str:
    """Return the summary so far in one line, as ping(8) prints it on SIGQUIT."""
    probes, counts = ping.probes, ping.probes.counts
    line = f"{counts.received}/{counts.transmitted} packets, {_loss(counts) * 100:.0f}% loss"
    if (figures := figures_of(probes.latencies)) is None:
        return line

    values = (figures.minimum, figures.average, round(probes.ewma), figures.maximum)
    return f"{line}, min/avg/ewma/max = {'/'.join(map(_fixed, values))} ms"


def _object(event: str, **fields: Any) -> str:
    return json.dumps({"event": event} | fields)


def _figures(latencies: Sequence[int]) -> dict[str, float | None] | None:
    if (figures := figures_of(latencies)) is None:
        return None

    values = asdict(figures) | {"jitter": figures.jitter}
    words = {"minimum": "min", "average": "avg", "maximum": "max"}
    return {words.get(name, name): None if value is None else value / 1e9 for name, value in values.items()}


def _loss(counts: ProbeCounts) -> float:
    """The share of probes without a reply that counts. The outstanding ones are included, as in ping(8)."""
    return (counts.transmitted - counts.received) / counts.transmitted if counts.transmitted else 0.0


def _min_avg_max_mdev(figures: PingFigures) -> str:
    values = (figures.minimum, figures.average, figures.maximum, figures.mdev)
    return f"min/avg/max/mdev = {'/'.join(map(_fixed, values))} ms"


def _fixed(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:.3f}"


def _or_dash(nanoseconds: int | None) -> str:
    return "-" if nanoseconds is None else _fixed(nanoseconds)


def _milliseconds(nanoseconds: int) -> str:
    """Format with as many digits as ping(8): 0.030, 1.23, 12.3, 123."""
    value = nanoseconds / 1e6
    digits = 3 if value < 0.9995 else 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}"


def _ranges(numbers: Sequence[int]) -> str:
    """Return ``3`` or ``3-7``: the probes of one connection are consecutive."""
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
