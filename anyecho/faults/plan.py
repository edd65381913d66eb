"""Which faults act on which connection, from one seed.

Each fault of a connection has a generator of its own, derived from the seed, the number of the connection and the
name of the fault. So a run repeats, and a further fault changes nothing about the rest.
"""

from __future__ import annotations

__all__ = ("DatagramPlan", "Drawn", "FaultPlan", "named", "new_seed", "spoil", "wrap_all")

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, count
from random import Random
from types import MappingProxyType
from typing import NamedTuple

from anyio.abc import ByteStream, TaskGroup

from anyecho.errors import UsageError, quoted
from anyecho.faults.fault import Alter, Fault


class Drawn(NamedTuple):
    """A fault that acts on a connection, and the generator for its decisions."""

    name: str
    fault: Fault
    random: Random


def new_seed() -> int:
    """Return a seed that is short enough to be typed."""
    return secrets.randbelow(10**9)


def named(faults: Iterable[Fault], given: Mapping[str, Fault] = MappingProxyType({})) -> dict[str, Fault]:
    """Return each of `faults` by a name of its kind and direction, as toxiproxy names them: ``latency_downstream``.

    A further one with the same name gets a number, from 2. The faults `given` by name follow. Raises `UsageError`
    if two have one name, or if one is no fault.
    """
    found: dict[str, Fault] = {}
    for fault in faults:
        if not isinstance(fault, Fault):
            raise UsageError(f"a fault must be a Fault, not {quoted(fault)}", options=("faults",))
        first = "_".join(filter(None, (fault.name, getattr(fault, "stream", ""))))
        names = chain([first], (f"{first}_{number}" for number in count(2)))
        found[next(name for name in names if name not in found)] = fault
    if both := found.keys() & given.keys():
        raise UsageError(f"two faults are called {', '.join(sorted(both))}", options=("faults",))

    return {**found, **given}


def _draw(faults: Mapping[str, Fault], seed: int, number: int) -> tuple[Drawn, ...]:
    each = (Drawn(name, fault, Random(f"{seed}/{number}/{name}")) for name, fault in faults.items())
    return tuple(drawn for drawn in each if drawn.fault.is_drawn(number, drawn.random))


@dataclass(eq=False)
class FaultPlan:
    """Numbers the connections of a listener and draws their faults.

    `faults` may be replaced at any time. A fault that keeps its name is drawn by the same random number again: with
    a higher toxicity it acts on further connections, and on those before.
    """

    faults: Mapping[str, Fault]
    seed: int
    #: Connections so far.
    connections: int = 0

    def next_number(self) -> int:
        """Return the number of the next connection."""
        self.connections += 1
        return self.connections

    def draw(self, number: int) -> tuple[Drawn, ...]:
        """Return the faults of the connection with this `number`."""
        return _draw(self.faults, self.seed, number)


class DatagramPlan:
    """The replies to each datagram of a listener. Repeats with `seed`."""

    def __init__(self, faults: Iterable[Fault], seed: int) -> None:
        self._number = 0
        self._alterations: list[tuple[Fault, Random, Alter]] = []
        for place, fault in enumerate(faults):
            if "datagram" in fault.carriers:
                random = Random(f"{seed}/datagrams/{place}")
                self._alterations.append((fault, random, fault.alter_datagrams(random)))

    def __bool__(self) -> bool:
        return bool(self._alterations)

    def replies(self, now: float, datagram: bytes) -> list[tuple[float, bytes]]:
        """Return what is sent in reply to the next datagram, each reply with the time when it is due."""
        self._number += 1
        found = [(now, datagram)]
        for fault, random, alter in self._alterations:
            if fault.is_drawn(self._number, random):
                found = [altered for due, reply in found for altered in alter(due, reply)]

        return found


def wrap_all(stream: ByteStream, drawn: Iterable[Drawn], tasks: TaskGroup | None = None) -> ByteStream:
    """Return `stream` with the faults in `drawn`. In each direction, bytes pass the first one first."""
    upstream: list[Drawn] = []
    downstream: list[Drawn] = []
    for each in drawn:
        (downstream if getattr(each.fault, "stream", "") == "downstream" else upstream).append(each)
    for _, fault, random in (*upstream, *reversed(downstream)):
        stream = fault.wrap(stream, random, tasks)

    return stream


def spoil(
    stream: ByteStream,
    *faults: Fault,
    seed: int | None = None,
    number: int = 1,
    tasks: TaskGroup | None = None,
) -> ByteStream:
    """Return `stream` with those of `faults` that act on connection `number`; `stream` itself if none does.

    The result owns `stream`. The same `seed` gives the same result; None is any seed. On the stream of a server,
    upstream is what it receives. A latency of what is sent needs `tasks`, a group that outlives the stream;
    without it, `send` waits for the delay of its chunk.
    """
    return wrap_all(stream, _draw(named(faults), new_seed() if seed is None else seed, number), tasks)
