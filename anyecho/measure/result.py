"""Results of runs: what was asked, what was counted, and how far the figures can be trusted; to and from JSON.

Durations are integer nanoseconds in histograms, float seconds elsewhere. The text beside each field is its
description in ``result.schema.json``.
"""

from __future__ import annotations

__all__ = (
    "LEVEL_EDGES",
    "SCHEMA",
    "STEADY_MIN",
    "Clock",
    "Counts",
    "Document",
    "Generator",
    "Load",
    "Machine",
    "Part",
    "RunResult",
    "Second",
    "Spread",
    "Steadiness",
)

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from anyecho.codec import decode, encode
from anyecho.errors import InternalError, UsageError, quoted
from anyecho.measure.figures import Figures
from anyecho.measure.histogram import Histogram
from anyecho.measure.omission import Stall
from anyecho.measure.statistics import adjusted_by_holm, jain_index, mann_whitney_p, spearman

#: Version of the JSON; a reader refuses any other.
SCHEMA = 1
#: Upper edges, in nanoseconds, of the levels of `Second.levels`: 8 per decade from 1 us to 100 s, then no limit.
LEVEL_EDGES = tuple(round(1000 * 10 ** (step / 8)) for step in range(65))

#: A run of fewer seconds has no verdict: the smallest p-value of 5 against 5 is 0.008, twice that with Holm.
STEADY_MIN = 10
_STEADY_P = 0.02


@dataclass(frozen=True, kw_only=True)
class Counts(Figures):
    """Messages by what became of them: each sent one is verified, wrong, lost or outstanding."""

    sent: Annotated[int, "Messages sent, or due while their connection was broken."]
    verified: Annotated[int, "Replies in time, complete and equal."]
    wrong: Annotated[int, "Replies that differ from their message."]
    lost: Annotated[int, "Messages without a reply in time."]
    outstanding: Annotated[int, "Messages without a reply when the run was interrupted."] = 0
    late: Annotated[int, "Replies after their timeout; the message is counted as lost."] = 0
    duplicates: Annotated[int, "UDP: second replies to a message."] = 0
    reordered: Annotated[int, "UDP: replies that came after the reply to a later message."] = 0
    connect_failed: Annotated[int, "Connections that could not be opened."] = 0
    from_warm_up: Annotated[int, "Replies to messages of the warm-up during the measurement; in no latency."] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        total = self.verified + self.wrong + self.lost + self.outstanding
        if self.sent != total:
            raise InternalError(f"{self.sent} messages were sent, but {total} are accounted for: {self}")


@dataclass(frozen=True, kw_only=True)
class Load(Figures):
    """The configuration of a run."""

    positive: ClassVar = frozenset({"size", "pipeline", "rate", "duration", "requests", "timeout", "shard_count"})
    signed: ClassVar = frozenset({"seed"})
    largest: ClassVar = {"shard_count": 999_999}

    address: Annotated[str, "Address of the server."]
    transport: Annotated[Literal["tcp", "tls", "unix", "udp"], "Carrier of the messages."]
    connections: Annotated[int, "Connections (of a shard: its own)."]
    size: Annotated[int, "Bytes per message."]
    pipeline: Annotated[int, "Maximum of outstanding messages per connection in a closed loop."] = 1
    rate: Annotated[float | None, "Messages/s due, of all shards together; null is a closed loop."] = None
    arrivals: Annotated[Literal["fixed", "exponential"], "Gaps between due times."] = "fixed"
    duration: Annotated[float | None, "Seconds to measure for, unless `requests` ends the run first."] = None
    requests: Annotated[int | None, "Messages after which the run ends."] = None
    warm_up: Annotated[float, "Seconds of load before the measurement, in no figure."] = 0.0
    timeout: Annotated[float | None, "Seconds after which a message is lost."] = None
    seed: Annotated[int, "Seed of payload and gaps."] = 0
    shard_index: Annotated[int, "Number of this shard, from 0."] = 0
    shard_count: Annotated[int, "Shards into which the schedule is divided."] = 1
    server_backend: Annotated[str, "Backend of the server, if the run started it."] = ""
    server_engine: Annotated[str, "Engine of the server, if the run started it."] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard_index >= self.shard_count:
            raise InternalError(f"there is no shard {self.shard_index} of {self.shard_count}, counted from 0")


@dataclass(frozen=True, kw_only=True)
class Clock(Figures):
    """The clock that stamped the messages."""

    name: Annotated[str, "Name of the clock."] = "perf_counter_ns"
    step_ns: Annotated[int, "Smallest difference of two readings."]
    cost_ns: Annotated[float, "Duration of a reading (median)."]


@dataclass(frozen=True, kw_only=True)
class Generator(Figures):
    """What the load generator did, as opposed to what was asked."""

    backend: Annotated[str, "Backend of the generator."]
    host: Annotated[str, "Name of its machine."] = ""
    clock: Annotated[Clock, "The clock of all stamps."]
    cpu_share: Annotated[float, "CPU time of the generator per second, 1 is one core."]
    cores: Annotated[int, "Cores that the generator may use."]
    pinned: Annotated[bool, "Whether --cpu pinned the generator."] = False
    late: Annotated[bool, "Whether it sent so late that the latencies are in doubt."] = False
    gc: Annotated[Literal["off", "on"], "Garbage collection while measuring."] = "off"
    gc_pauses: Annotated[tuple[float, ...], "Seconds of each garbage collection while measuring."] = ()
    asked_rate: Annotated[float | None, "Messages/s asked for (of a shard: its own); null is a closed loop."] = None
    achieved_rate: Annotated[float, "Messages/s sent."]
    seconds_off_rate: Annotated[int, "Seconds in which the rate was missed by more than 0.5 %."] = 0


@dataclass(frozen=True, kw_only=True)
class Spread(Figures):
    """How evenly the connections were served."""

    positive: ClassVar = frozenset({"jain"})

    messages_min: Annotated[int, "Replies on the connection with the fewest."]
    messages_max: Annotated[int, "Replies on the connection with the most."]
    p50_min: Annotated[float | None, "Median latency of the fastest connection, in seconds."]
    p50_max: Annotated[float | None, "Median latency of the slowest connection, in seconds."]
    jain: Annotated[float, "Jain's index of the replies: 1 is even."]

    @classmethod
    def of(cls, messages: Sequence[int], p50s: Sequence[float]) -> Spread | None:
        """Return the spread over connections by their replies, and by the medians of those that have any."""
        if len(messages) < 2:
            return None

        return cls(
            messages_min=min(messages),
            messages_max=max(messages),
            p50_min=min(p50s, default=None),
            p50_max=max(p50s, default=None),
            jain=jain_index(messages),
        )


@dataclass(frozen=True, kw_only=True)
class Steadiness(Figures):
    """Whether the latency stayed the same during the run, by the medians of its seconds (merged: their mean)."""

    signed: ClassVar = frozenset({"trend_rho"})

    steady: Annotated[bool | None, "null: the run is too short to tell (below 10 s)."] = None
    halves_p: Annotated[float | None, "p-value of Mann-Whitney, first half against second."] = None
    trend_rho: Annotated[float | None, "Spearman's correlation with time."] = None
    trend_p: Annotated[float | None, "p-value of that correlation."] = None

    @classmethod
    def of(cls, medians: Sequence[float]) -> Steadiness:
        """Return the verdict for the median latencies of consecutive seconds."""
        if len(medians) < STEADY_MIN:
            return cls()

        half = len(medians) // 2
        halves_p = mann_whitney_p(medians[:half], medians[half:])
        rho, trend_p = spearman(range(len(medians)), medians)
        steady = min(adjusted_by_holm([halves_p, trend_p])) >= _STEADY_P
        return cls(steady=steady, halves_p=halves_p, trend_rho=rho, trend_p=trend_p)


@dataclass(frozen=True, kw_only=True)
class Second(Figures):
    """Replies of one second, by the second in which they arrived."""

    start: Annotated[float, "Seconds since the start of the measurement."]
    verified: Annotated[int, "Replies in time, complete and equal."]
    bytes: Annotated[int, "Their payload bytes in one direction."]
    p50: Annotated[float | None, "Median latency in seconds; null for few replies, or merged shards."] = None
    p99: Annotated[float | None, "p99 of the latency in seconds; null as for p50."] = None
    levels: Annotated[
        tuple[int, ...], "Replies by latency: 8 levels per decade from 1 us to 100 s, then beyond."
    ] = ()


@dataclass(frozen=True, kw_only=True)
class Part(Figures):
    """One generator of a merged run; its figures are part of those of the run, unless it was lost."""

    name: Annotated[str, "The shard, and the process or worker that ran it."]
    host: Annotated[str, "Name of its machine; empty if it was lost."] = ""
    connections: Annotated[int, "Connections."] = 0
    sent: Annotated[int, "Messages sent."] = 0
    verified: Annotated[int, "Replies in time, complete and equal."] = 0
    rate: Annotated[float, "Verified replies per second."] = 0.0
    p50: Annotated[float | None, "Median latency in seconds; null for few replies."] = None
    p99: Annotated[float | None, "p99 of the latency in seconds; null as for p50."] = None
    lag_p99: Annotated[float | None, "p99 of the lag in seconds; null as for p50."] = None
    cpu_share: Annotated[float, "CPU time of the generator per second, 1 is one core."] = 0.0
    pinned: Annotated[bool, "Whether it was pinned to cores."] = False
    error: Annotated[str, "One line: why it was lost, or its own error."] = ""


@dataclass(frozen=True, kw_only=True)
class RunResult(Figures):
    """One run: a repetition, a step of a sweep, or a shard."""

    largest: ClassVar = {"started_at": 253_402_300_799}  # in the year 9999

    load: Annotated[Load, "What was asked."]
    counts: Annotated[Counts, "Messages by what became of them."]
    started_at: Annotated[float, "Start of the measurement, in seconds since 1970."]
    seconds: Annotated[float, "From the start of the measurement to the last reply or timeout."]
    latency: Annotated[Histogram, "From the due time to the reply; a lost message counts its timeout."]
    uncorrected: Annotated[Histogram, "From the actual send to the reply; without lost messages."]
    lag: Annotated[Histogram, "From the due time until the generator acted; empty in a closed loop."]
    generator: Annotated[Generator, "What the load generator did."]
    per_second: Annotated[tuple[Second, ...], "Consecutive seconds of the measurement."] = ()
    spread: Annotated[Spread | None, "Over connections; null if there is only one."] = None
    steadiness: Annotated[Steadiness, "Whether the latency stayed the same."] = field(default_factory=Steadiness)
    stall: Annotated[Stall | None, "Closed loop: a stall that its percentiles hide; null: none."] = None
    parts: Annotated[tuple[Part, ...], "The generators, if the run is merged; lost ones too."] = ()
    server_cpu_per_echo: Annotated[float | None, "CPU seconds of the server per reply, if known."] = None
    round: Annotated[int | None, "Round in which runs of several configurations were interleaved."] = None
    interrupted: Annotated[bool, "A signal or an error ended the run before its time."] = False
    saturated: Annotated[bool, "A queue of due messages became full."] = False
    ended_early: Annotated[bool, "Every connection was dropped before the end of the load."] = False
    error: Annotated[str, "One line: why the run ended, or why a part of it is missing."] = ""
    notes: Annotated[tuple[str, ...], "Lines that qualify the figures."] = ()

    @property
    def rate(self) -> float:
        """Verified replies per second."""
        return self.counts.verified / self.seconds if self.seconds >= 1e-9 else 0.0


@dataclass(frozen=True, kw_only=True)
class Machine(Figures):
    """The machine of the generator, with its state before and after the runs."""

    system: Annotated[str, "Kernel name and release."] = ""
    processor: Annotated[str, "Model of the processor."] = ""
    cores: Annotated[int, "Cores online."] = 0
    governor: Annotated[str, "Frequency governor of core 0."] = ""
    load_before: Annotated[tuple[float, ...], "Load averages of 1, 5 and 15 minutes before the runs."] = ()
    load_after: Annotated[tuple[float, ...], "Load averages after the runs."] = ()
    steal: Annotated[float | None, "Seconds stolen by the hypervisor during the runs, all cores."] = None


@dataclass(frozen=True, kw_only=True)
class Document:
    """A result file: the runs of one command, and where they took place."""

    version: Annotated[str, "Version of anyecho."]
    command: Annotated[tuple[str, ...], "The command line."]
    machine: Annotated[Machine, "The machine of the generator."] = field(default_factory=Machine)
    versions: Annotated[dict[str, str], "Versions of Python and libraries, by name."] = field(default_factory=dict)
    runs: Annotated[tuple[RunResult, ...], "Repetitions, steps of a sweep, or shards."]

    def to_json(self) -> str:
        """Return the JSON text, with one line per run."""
        head = {"schema": SCHEMA, "program": "anyecho"} | encode(self)
        runs = ",\n".join(json.dumps(each, allow_nan=False) for each in head.pop("runs"))
        return f'{json.dumps(head, allow_nan=False)[:-1]}, "runs": [\n{runs}\n]}}\n'

    @classmethod
    def from_json(cls, text: str | bytes, name: str = "the result") -> Document:
        """Return the document of `to_json`; `name` is that of its file, for errors.

        Raises:
            UsageError: the text is cut, damaged, or of another version.
        """
        try:
            value: Any = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError) as exc:
            raise UsageError(f"{name} is not complete JSON: it was cut or is no result ({exc})") from exc

        if not isinstance(value, dict) or value.get("program") != "anyecho":
            raise UsageError(f"{name} is JSON, but no result of anyecho")
        if value.get("schema") != SCHEMA:
            found = quoted(value.get("schema"))
            raise UsageError(f"{name} is of version {found} of the schema, and this program reads {SCHEMA} only")

        try:
            return decode(cls, value)
        except (UsageError, InternalError) as exc:
            raise UsageError(f"{name} is damaged: {exc}") from exc


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
