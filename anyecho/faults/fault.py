"""What a fault is: a value that says what goes wrong, and on which connections.

A fault of streams makes a wrapper for each connection on which it acts. Everything drawn at random comes from one
generator, so the same generator gives the same fault on every backend.
"""

from __future__ import annotations

__all__ = ("Alter", "ConnectionEnded", "Direction", "Fault", "Spoiled", "StreamFault", "logger")

import logging
import math
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from random import Random
from typing import Any, ClassVar, Generic, Literal, NoReturn, TypeAlias, TypeVar

from anyio import BrokenResourceError, BusyResourceError, CancelScope, ClosedResourceError, ResourceGuard
from anyio.abc import ByteStream, TaskGroup
from anyio.lowlevel import checkpoint

from anyecho.errors import UsageError
from anyecho.net.tls.generated import Flaw
from anyecho.options import documented, option
from anyecho.streams.passthrough import Passthrough
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
    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> Spoiled[Any]: ...


F = TypeVar("F", bound=StreamFault)
T = TypeVar("T")


@dataclass(eq=False)
class Spoiled(Passthrough, Generic[F]):
    """A stream with a fault: bytes of one direction pass in pieces, each late, altered or not at all.

    A subclass overrides the steps of a piece. No step may lose bytes when it is cancelled: it is called again.
    The fault may be replaced or removed while the stream is in use.
    """

    fault: F
    random: Random
    #: Bytes that have passed, in the direction of the fault.
    passed: int = field(init=False, default=0)
    #: Bytes that may pass before the next call of `_admit`.
    _allowance: int = field(init=False, default=0)
    #: Bytes received that have not passed.
    _held: bytes = field(init=False, default=b"", repr=False)
    #: Whether the fault was removed: it does nothing more, and what it held passes.
    removed: bool = field(init=False, default=False)
    #: Waits that begin anew if the fault changes.
    _waits: set[CancelScope] = field(init=False, default_factory=set, repr=False)
    _ended: bool = field(init=False, default=False)
    _closed: bool = field(init=False, default=False)
    _receiving: ResourceGuard = field(init=False, default_factory=lambda: ResourceGuard("receiving from"))
    _sending: ResourceGuard = field(init=False, default_factory=lambda: ResourceGuard("sending to"))

    async def receive(self, max_bytes: int = 65536) -> bytes:
        self._check()
        if self.fault.stream == "downstream":
            with self._end_told():
                return await self.stream.receive(max_bytes)
        if max_bytes <= 0:
            raise ValueError(f"max_bytes must be positive, not {max_bytes}")

        with self._receiving, self._end_told():
            while True:
                await self._check_boundary()
                if self._held:
                    await checkpoint()
                else:
                    self._held = await self.stream.receive()
                admitted = await self._admitted(len(self._held))
                # Nothing is awaited from here to the return: a cancelled call has not taken any bytes.
                count = min(admitted, max_bytes)
                piece = self._pass(self._held[:count])
                self._held = self._held[count:]
                if piece:
                    return piece

    async def send(self, item: bytes) -> None:
        self._check()
        if self.fault.stream == "upstream" or not item:
            with self._end_told():
                await self.stream.send(item)
            return

        rest = memoryview(item).cast("B")
        with self._sending, self._end_told():
            await self._check_boundary()
            while rest:
                count = await self._admitted(len(rest))
                piece = self._pass(bytes(rest[:count]))
                rest = rest[count:]
                if piece:
                    await self.stream.send(piece)
                else:
                    await checkpoint()
                await self._check_boundary()

    async def send_eof(self) -> None:
        with self._sending:  # not while a piece waits
            await self.stream.send_eof()

    async def aclose(self) -> None:
        self._closed = True
        await self.stream.aclose()

    def replace(self, fault: F) -> None:
        """Let `fault`, of the same kind and direction, act. It begins anew, but for the bytes counted."""
        self.fault = fault
        self._restart()

    def remove(self) -> None:
        """Let what is held pass, and all that comes later."""
        self.removed = True
        self._restart()

    @property
    def is_idle(self) -> bool:
        """Whether it holds no bytes, and no call of its direction runs, which may be about to."""
        try:
            with self._receiving, self._sending:
                return not self._held
        except BusyResourceError:
            return False

    async def _check_boundary(self) -> None:
        if not self.removed:
            await self._at_boundary()

    async def _admitted(self, size: int) -> int:
        """Wait until bytes may pass, of which there are `size`; return how many may."""
        while not self.removed:
            if self._allowance > 0:
                return min(size, self._allowance)

            await self._at_boundary()
            self._allowance = await self._restarted(partial(self._admit, size)) or 0

        return size

    async def _restarted(self, wait: Callable[[], Awaitable[T]]) -> T | None:
        """Return what `wait` returns; None if the fault changed meanwhile."""
        with CancelScope() as scope:
            self._waits.add(scope)
            try:
                return await wait()
            finally:
                self._waits.discard(scope)

        return None

    def _restart(self) -> None:
        """Called when the fault has changed: begin anew, and let each wait end."""
        self._allowance = 0
        for scope in self._waits:
            scope.cancel()

    async def _at_boundary(self) -> None:
        """Called before and after each piece."""

    async def _admit(self, size: int) -> int:
        """Wait until bytes may pass, of which there are `size`; return how many may, at least 1."""
        return size

    def _alter(self, piece: bytes) -> bytes:
        """Return the bytes that pass in place of `piece`, which begins at the offset `passed`."""
        return piece

    def _pass(self, piece: bytes) -> bytes:
        altered = piece if self.removed else self._alter(piece)
        self.passed += len(piece)
        self._allowance -= len(piece)
        return altered

    def _check(self) -> None:
        if self._closed:
            raise ClosedResourceError
        if self._ended:
            raise ConnectionEnded

    @contextmanager
    def _end_told(self) -> Iterator[None]:
        """Raise `ConnectionEnded` from a call that waited while the call of another task ended the connection."""
        try:
            yield
        except (BrokenResourceError, ClosedResourceError) as exc:
            if not self._ended or self._closed or isinstance(exc, ConnectionEnded):
                raise
            raise ConnectionEnded from exc

    async def _end_by(self, close: Callable[[ByteStream], Awaitable[None]]) -> NoReturn:
        """End the connection by `close`, which acts before its first checkpoint: `cut` or `reset`."""
        self._ended = True
        await close(self.stream)
        self._end()

    def _end(self) -> NoReturn:
        logger.info("%s ends the connection after %d bytes", self.fault.name, self.passed)
        self._ended = True
        raise ConnectionEnded(f"ended by the fault {self.fault.name}")
