"""What a fault is: a value that says what goes wrong, and on which connections.

A fault of streams makes a wrapper for each connection on which it acts. Everything drawn at random comes from one
generator, so the same generator gives the same fault on every backend.
"""

from __future__ import annotations

__all__ = ("Alter", "ConnectionEnded", "Direction", "Fault", "StreamFault", "logger")

import logging
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from random import Random
from typing import ClassVar, Literal, NoReturn, TypeAlias

from anyio import BrokenResourceError
from anyio.abc import ByteStream, TaskGroup

from anyecho.errors import UsageError
from anyecho.net.tls.generated import Flaw
from anyecho.options import documented, option
from anyecho.validation import check_types

logger = logging.getLogger("anyecho.faults")

#: Returns what a datagram that is due at a time becomes: datagrams, each with the time when it is due.
Alter: TypeAlias = Callable[[float, bytes], list[tuple[float, bytes]]]
Direction: TypeAlias = Literal["upstream", "downstream"]


class ConnectionEnded(BrokenResourceError):
    """A fault ended the connection."""


@documented
@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault, and the connections on which it acts: those that meet every condition.

    Raises:
        UsageError: a value has the wrong type or is out of range.
    """

    #: The name in a specification, ``name:key=value``.
    name: ClassVar[str]
    #: What it acts on: stream, datagram, tls.
    carriers: ClassVar[tuple[str, ...]] = ("stream",)
    #: The flaw of the certificate that the server presents instead of its own.
    flaw: ClassVar[Flaw | None] = None
    #: Whether the connection ends without close_notify.
    omits_close_notify: ClassVar[bool] = False
    #: Whether its removal ends the connection, because bytes are missing.
    ends_when_removed: ClassVar[bool] = False
    #: Options of which a specification must give at least one: without them it has no effect.
    needs: ClassVar[tuple[str, ...]] = ()
    #: Options that must be more than 0.
    positive: ClassVar[tuple[str, ...]] = ("first", "on", "every")
    #: Options that are probabilities.
    probable: ClassVar[tuple[str, ...]] = ("toxicity",)

    toxicity: float = option(1.0, "The probability that it acts on a connection, drawn once for each; 0: never.")
    first: int | None = option(None, "Only on this many connections, the first ones.")
    on: int | None = option(None, "Only on the connection with this number, counted from 1.")
    every: int | None = option(None, "Only on each connection whose number is a multiple of this.")

    def __post_init__(self) -> None:
        check_types(self)
        for each in fields(self):
            value = getattr(self, each.name)
            if not isinstance(value, int | float):
                continue
            if each.name in self.positive and not value > 0:
                self._refuse(each.name, "more than 0")
            if each.name in self.probable and not 0 <= value <= 1:
                self._refuse(each.name, "from 0 to 1")
            if not 0 <= value < math.inf:
                self._refuse(each.name, "0 or more")

    def _refuse(self, option_name: str, wanted: str) -> NoReturn:
        text = f"{self.name}: {option_name} must be {wanted}, not {getattr(self, option_name)}"
        raise UsageError(text, options=(option_name,))

    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> ByteStream:
        """Return a stream over `stream` with this fault; `stream` itself if it has no effect on its bytes.

        It owns `stream`. `tasks` must outlive it; without them, a delay makes `send` wait.
        """
        return stream

    async def before_handshake(self) -> None:
        """Called by the server before it answers a ClientHello."""

    def alter_datagrams(self, random: Random) -> Alter:
        """Return the function that alters each datagram. Only for faults of datagrams."""
        raise NotImplementedError

    def is_drawn(self, number: int, random: Random) -> bool:
        """Whether it acts on the connection with this `number`. Takes one value of `random` in each case."""
        likely = random.random() < self.toxicity
        chosen = self.on in (None, number) and number <= (self.first or number) and not number % (self.every or 1)
        return likely and chosen


@dataclass(frozen=True, kw_only=True)
class StreamFault(Fault):
    """A fault of one direction of a byte stream."""

    stream: Direction = option(
        "downstream", "The direction: upstream is what a peer sends, downstream what it gets."
    )

    @abstractmethod
    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> ByteStream: ...
