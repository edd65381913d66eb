"""Faults of datagrams: each reply may be lost, sent twice, late, overtaken or shorter.

Here a datagram is what a connection is for a stream: it is numbered, chosen and drawn.
"""

from __future__ import annotations

__all__ = ("DatagramFault", "Duplicate", "Loss", "Reorder", "Truncate")

from abc import abstractmethod
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from anyecho.faults.contents import is_dropped
from anyecho.faults.fault import Alter, Fault
from anyecho.options import documented, option
from anyecho.units import Seconds, Size


@dataclass(frozen=True, kw_only=True)
class DatagramFault(Fault):
    """A fault of datagrams only."""

    carriers: ClassVar[tuple[str, ...]] = ("datagram",)

    @abstractmethod
    def alter_datagrams(self, random: Random) -> Alter: ...


@documented
@dataclass(frozen=True, kw_only=True)
class Loss(DatagramFault):
    """Datagrams are lost."""

    name: ClassVar[str] = "loss"
    probable: ClassVar[tuple[str, ...]] = (*Fault.probable, "loss_rate", "correlation")

    loss_rate: float = option(0.1, "The probability that a datagram is lost.")
    correlation: float = option(0.0, "How much a datagram shares the fate of the last one: 0 not at all, 1 always.")

    def alter_datagrams(self, random: Random) -> Alter:
        last: bool | None = None

        def alter(due: float, datagram: bytes) -> list[tuple[float, bytes]]:
            nonlocal last
            last = is_dropped(random, self.loss_rate, self.correlation, last)
            return [] if last else [(due, datagram)]

        return alter


@documented
@dataclass(frozen=True, kw_only=True)
class Duplicate(DatagramFault):
    """Datagrams arrive twice."""

    name: ClassVar[str] = "duplicate"
    probable: ClassVar[tuple[str, ...]] = (*Fault.probable, "rate")

    rate: float = option(1.0, "The probability that a datagram arrives twice.")

    def alter_datagrams(self, random: Random) -> Alter:
        return lambda due, datagram: [(due, datagram)] * (2 if random.random() < self.rate else 1)


@documented
@dataclass(frozen=True, kw_only=True)
class Reorder(DatagramFault):
    """Datagrams are held back for `delay`, and so overtaken by later ones."""

    name: ClassVar[str] = "reorder"
    probable: ClassVar[tuple[str, ...]] = (*Fault.probable, "rate")

    rate: float = option(0.1, "The probability that a datagram is held back.")
    delay: Seconds = option(0.05, "How long.")

    def alter_datagrams(self, random: Random) -> Alter:
        return lambda due, datagram: [(due + self.delay * (random.random() < self.rate), datagram)]


@documented
@dataclass(frozen=True, kw_only=True)
class Truncate(DatagramFault):
    """Datagrams arrive with their first `bytes` only."""

    name: ClassVar[str] = "truncate"

    bytes: Size = option(0, "Bytes that are left at most.")

    def alter_datagrams(self, random: Random) -> Alter:
        return lambda due, datagram: [(due, datagram[: self.bytes])]
