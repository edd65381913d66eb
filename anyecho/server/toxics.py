"""Toxics: faults as toxiproxy describes them, with its units, its zeros and its names.

Nothing else in anyecho knows milliseconds, kilobytes per second or a 0 that means never. Attributes are checked as
toxiproxy checks them: unknown ones are ignored, null is the default, a number of the wrong kind is an error.
"""

from __future__ import annotations

__all__ = ("TOXICS", "Toxic", "make_toxic", "update_toxic")

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from anyecho.errors import UsageError, quoted
from anyecho.faults.contents import Corrupt, PacketLoss, Slicer
from anyecho.faults.delays import Bandwidth, SlowClose, Stall
from anyecho.faults.ends import Cut, HalfClose, LimitData, ResetPeer, Timeout
from anyecho.faults.fault import Direction, StreamFault
from anyecho.faults.latency import Latency
from anyecho.server.control_body import RequestFailed, text

Number: TypeAlias = int | float | None
Attributes: TypeAlias = Mapping[str, Number]

#: Whole numbers are those of 64 bits, as in Go. Times of more than 68 years are as good as for ever.
_INT_MAX = 2**63 - 1
_MS_MAX = 2**31 * 1000


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A type of toxic: its attributes with their defaults, of which floats may be fractions, and its fault.

    `make` gets the attributes and what every fault has; it returns None if there is no fault.
    """

    make: Callable[[dict[str, Any], dict[str, Any]], StreamFault | None]
    attributes: Attributes


@dataclass(frozen=True, kw_only=True)
class Toxic:
    """A toxic of a proxy, with all attributes of its type. Raises `UsageError` if there is no such fault."""

    name: str
    type: str
    stream: Direction
    toxicity: float
    attributes: Attributes
    #: None for a noop.
    fault: StreamFault | None = field(init=False)

    def __post_init__(self) -> None:
        common = {"stream": self.stream, "toxicity": min(max(float(self.toxicity), 0.0), 1.0)}
        object.__setattr__(self, "fault", TOXICS[self.type].make({**self.attributes}, common))

    def to_json(self) -> dict[str, Any]:
        toxicity = int(self.toxicity) if self.toxicity == int(self.toxicity) else self.toxicity
        return {
            "attributes": {**self.attributes},
            "name": self.name,
            "type": self.type,
            "stream": self.stream,
            "toxicity": toxicity,
        }


def make_toxic(given: Mapping[str, Any]) -> Toxic:
    """Return the toxic that the JSON object `given` describes. Raises `RequestFailed`, `UsageError`."""
    stream = _direction((text(given, "stream") or "downstream").lower())
    kind = text(given, "type")
    if kind not in TOXICS:
        raise RequestFailed("invalid toxic type", 400)

    attributes = TOXICS[kind].attributes
    return Toxic(
        name=text(given, "name") or f"{kind}_{stream}",
        type=kind,
        stream=stream,
        toxicity=_toxicity(given, 1),
        attributes={**attributes, **_given_attributes(given, attributes)},
    )


def update_toxic(toxic: Toxic, given: Mapping[str, Any]) -> Toxic:
    """Return `toxic` with the attributes and the toxicity in `given`. Raises `RequestFailed`, `UsageError`."""
    known = TOXICS[toxic.type].attributes
    attributes = {**toxic.attributes, **_given_attributes(given, known)}
    return replace(toxic, attributes=attributes, toxicity=_toxicity(given, toxic.toxicity))


def _direction(stream: str) -> Direction:
    if stream == "upstream":
        return "upstream"
    if stream == "downstream":
        return "downstream"

    raise RequestFailed("stream was invalid, can be either upstream or downstream", 400)


def _toxicity(given: Mapping[str, Any], default: float) -> float:
    value = given.get("toxicity")
    return default if value is None else _number(value, "toxicity", fraction=True)


def _given_attributes(given: Mapping[str, Any], known: Attributes) -> dict[str, Number]:
    attributes = given.get("attributes") or {}
    if not isinstance(attributes, dict):
        raise UsageError(f"attributes must be an object, not {quoted(attributes)}")

    return {
        key: _number(attributes[key], key, fraction=isinstance(default, float))
        for key, default in known.items()
        if attributes.get(key) is not None
    }


def _number(value: object, key: str, *, fraction: bool) -> int | float:
    # A bool is an int in Python.
    if isinstance(value, bool) or not isinstance(value, (int, float) if fraction else int):
        what = "number" if fraction else "whole number"
        raise UsageError(f"{key} must be a {what}, not {quoted(value)}")
    if not -_INT_MAX <= value <= _INT_MAX:
        raise UsageError(f"{key} is out of range")

    return value


def _ms(value: int) -> float:
    return min(value, _MS_MAX) / 1000


def _or_never(value: int) -> float | None:
    """Seconds of milliseconds, of which 0 is never."""
    return _ms(value) or None


def _latency(of: dict[str, Any], common: dict[str, Any]) -> StreamFault:
    return Latency(latency=_ms(of["latency"]), jitter=_ms(of["jitter"]), **common)


def _bandwidth(of: dict[str, Any], common: dict[str, Any]) -> StreamFault:
    # A rate of 0 lets nothing pass: clients use it to cut a connection without closing it.
    return Bandwidth(rate=float(of["rate"]) * 1000, **common) if of["rate"] else Stall(**common)


def _slicer(of: dict[str, Any], common: dict[str, Any]) -> StreamFault:
    size = of["average_size"] or 1
    return Slicer(average_size=size, size_variation=of["size_variation"], delay=of["delay"] / 1e6, **common)


def _packet_loss(of: dict[str, Any], common: dict[str, Any]) -> StreamFault:
    return PacketLoss(loss_rate=float(of["loss_rate"]), correlation=float(of["correlation"]), **common)


def _cut(of: dict[str, Any], common: dict[str, Any]) -> StreamFault:
    after = of["bytes"]
    if after is None and not of["timeout"]:
        raise UsageError("cut: give bytes or timeout")

    return Cut(seconds=_or_never(of["timeout"]), bytes=after, **common)


def _corrupt(of: dict[str, Any], common: dict[str, Any]) -> StreamFault:
    if of["offset"] is None and not of["rate"]:
        raise UsageError("corrupt: give rate or offset")

    return Corrupt(rate=float(of["rate"]), offset=of["offset"], **common)


def _stall(of: dict[str, Any], common: dict[str, Any]) -> StreamFault:
    return Stall(bytes=of["bytes"], seconds=_or_never(of["timeout"]), **common)


#: Every type. The first nine are those of toxiproxy, the rest are ours.
TOXICS: Mapping[str, _Kind] = {
    "latency": _Kind(make=_latency, attributes={"latency": 0, "jitter": 0}),
    "bandwidth": _Kind(make=_bandwidth, attributes={"rate": 0}),
    "slow_close": _Kind(
        make=lambda of, common: SlowClose(delay=_ms(of["delay"]), **common), attributes={"delay": 0}
    ),
    "timeout": _Kind(
        make=lambda of, common: Timeout(timeout=_or_never(of["timeout"]), **common), attributes={"timeout": 0}
    ),
    "reset_peer": _Kind(
        make=lambda of, common: ResetPeer(timeout=_ms(of["timeout"]), **common), attributes={"timeout": 0}
    ),
    "slicer": _Kind(make=_slicer, attributes={"average_size": 0, "size_variation": 0, "delay": 0}),
    "limit_data": _Kind(make=lambda of, common: LimitData(bytes=of["bytes"], **common), attributes={"bytes": 0}),
    "packet_loss": _Kind(make=_packet_loss, attributes={"loss_rate": 0.1, "correlation": 0.0}),
    "noop": _Kind(make=lambda of, common: None, attributes={}),
    "corrupt": _Kind(make=_corrupt, attributes={"rate": 0.0, "offset": None}),
    "cut": _Kind(make=_cut, attributes={"bytes": None, "timeout": 0}),
    "stall": _Kind(make=_stall, attributes={"bytes": 0, "timeout": 0}),
    "half_close": _Kind(make=lambda of, common: HalfClose(bytes=of["bytes"], **common), attributes={"bytes": 0}),
}
