"""Parse ``NAME:key=value,...``, the text of a fault on the command line."""

from __future__ import annotations

__all__ = ("FAULTS", "parse_fault")

import re
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from types import NoneType
from typing import Any, get_args, get_type_hints

from anyecho.errors import UnitError, UsageError
from anyecho.faults.contents import Corrupt, PacketLoss, Slicer
from anyecho.faults.datagrams import Duplicate, Loss, Reorder, Truncate
from anyecho.faults.delays import Bandwidth, SlowClose, Stall
from anyecho.faults.ends import Cut, HalfClose, LimitData, ResetPeer, Timeout
from anyecho.faults.fault import Fault
from anyecho.faults.latency import Latency
from anyecho.faults.tls import (
    ExpiredCertificate,
    NoCloseNotify,
    SelfSignedCertificate,
    StalledHandshake,
    WrongNameCertificate,
)
from anyecho.units import OFF, Unit

_STREAMS = (
    *(Latency, Bandwidth, SlowClose, Timeout, ResetPeer, Slicer, LimitData, PacketLoss),
    *(Corrupt, Cut, Stall, HalfClose),
)
_DATAGRAMS = (Loss, Duplicate, Reorder, Truncate)
_TLS = (StalledHandshake, NoCloseNotify, ExpiredCertificate, SelfSignedCertificate, WrongNameCertificate)
#: Every fault by its name.
FAULTS: Mapping[str, type[Fault]] = {kind.name: kind for kind in (*_STREAMS, *_DATAGRAMS, *_TLS)}


def parse_fault(text: str) -> Fault:
    """Return the fault that `text` describes, like ``latency:latency=100ms,jitter=10ms,stream=upstream``.

    Raises `UsageError` of one line, with the nearest right name.
    """
    name, _, settings = text.partition(":")
    if name not in FAULTS:
        raise UsageError(f"no fault {name!r}{_nearest(name, FAULTS)}; there are {', '.join(FAULTS)}")

    kind = FAULTS[name]
    hints = get_type_hints(kind, include_extras=True)
    known = [each.name for each in fields(kind)]
    given: dict[str, Any] = {}
    for setting in settings.split(",") if settings else ():
        key, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"{name}: {setting!r} is not key=value")
        if key not in known:
            raise UsageError(f"{name}: no key {key!r}{_nearest(key, known)}; there are {', '.join(known)}")
        if key in given:
            raise UsageError(f"{name}: {key} is given twice")
        try:
            given[key] = _parse_value(value, hints[key])
        except ValueError as exc:
            raise UsageError(f"{name}: {key}: {exc}") from None

    if kind.needs and not given.keys() & kind.needs:
        raise UsageError(f"{name}: give {' or '.join(kind.needs)}")

    try:
        return kind(**given)
    except UsageError as exc:  # without its options: the keys of a fault are not flags
        raise UsageError(f"{name}: {str(exc).removeprefix(f'{name}: ')}") from None


def _parse_value(text: str, hint: Any) -> Any:
    """Return `text` as `hint` wants it. Raises `ValueError` of one line."""
    kinds = [each for each in get_args(hint) if each is not NoneType] if NoneType in get_args(hint) else [hint]
    if text == OFF and kinds != [hint]:
        return None

    [kind] = kinds
    unit = next((each for each in get_args(kind) if isinstance(each, Unit)), None)
    if unit is not None:
        if unit.name == "DURATION" and re.fullmatch(r"[\d.e+-]+", text, re.I | re.A):
            raise UnitError(f"{text!r} has no unit: write {text}ms or {text}s")
        return unit.parse(text)
    if kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a {'whole ' if kind is int else ''}number") from None
        return number
    if text not in get_args(kind):
        raise ValueError(f"it is {' or '.join(get_args(kind))}, not {text!r}")

    return text


def _nearest(word: str, known: Mapping[str, object] | list[str]) -> str:
    nearest = get_close_matches(word, known, n=1)
    return f" (did you mean {nearest[0]}?)" if nearest else ""
