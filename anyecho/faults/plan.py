"""Which faults act on which connection, from one seed.

Each fault of a connection has a generator of its own, derived from the seed, the number of the connection and the
place of the fault in the list. So a run repeats, and a further fault changes nothing about the others.
"""

from __future__ import annotations

__all__ = ("DatagramPlan", "Drawn", "FaultPlan", "new_seed", "spoil", "wrap_all")

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from anyio.abc import ByteStream, TaskGroup

from anyecho.faults.fault import Alter, Fault


class Drawn(NamedTuple):
    """A fault that acts on a connection, and the generator for its decisions."""

    fault: Fault
    random: Random


def new_seed() -> int:
    """Return a seed that is short enough to be typed."""
    return secrets.randbelow(10**9)


def _draw(faults: Sequence[Fault], seed: int, number: int) -> tuple[Drawn, ...]:
    each_with_random = [(fault, Random(f"{seed}/{number}/{place}")) for place, fault in enumerate(faults)]
    return tuple(Drawn(fault, random) for fault, random in each_with_random if fault.is_drawn(number, random))


@dataclass(eq=False)
class FaultPlan:
    """Numbers the connections of a listener and draws their faults.

    `faults` may be replaced at any time; the next connection is drawn from the new ones.
    """

    faults: tuple[Fault, ...]
    seed: int
    #: Connections so far.
    connections: int = 0

    def draw(self) -> tuple[Drawn, ...]:
        """Return the faults of the next connection."""
        self.connections += 1
        return () if not self.faults else _draw(self.faults, self.seed, self.connections)


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
    for fault, random in (*upstream, *reversed(downstream)):
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
    return wrap_all(stream, _draw(faults, new_seed() if seed is None else seed, number), tasks)
