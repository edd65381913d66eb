"""A stream with a fault: the steps of a piece, which a fault overrides, and what happens when the fault changes.

It must not know which faults there are, or what else acts on the stream.
"""

from __future__ import annotations

__all__ = ("Spoiled",)

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Generic, NoReturn, TypeVar

from anyio import BrokenResourceError, BusyResourceError, CancelScope, ClosedResourceError, ResourceGuard
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint

from anyecho.faults.fault import ConnectionEnded, StreamFault, logger
from anyecho.streams import Passthrough

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
    #: Bytes received that have not passed, and that have passed but exceeded the maximum of a call.
    _held: bytes = field(init=False, default=b"", repr=False)
    _passed: bytes = field(init=False, default=b"", repr=False)
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
            if self._passed:
                await checkpoint()
            while not self._passed:
                await self._check_boundary()
                if self._held:
                    await checkpoint()
                else:
                    self._held = await self.stream.receive()
                count = await self._admitted(len(self._held))
                self._passed = self._pass(self._held[:count])
                self._held = self._held[count:]
            # Nothing is awaited from the last checkpoint to here: a cancelled call has not taken any bytes.
            piece, self._passed = self._passed[:max_bytes], self._passed[max_bytes:]
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
                return not self._held and not self._passed
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
        """Return what `wait` returns; None if `_end_waits` ended it."""
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
        self._end_waits()

    def _end_waits(self) -> None:
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

    async def drain(self) -> None:
        """Wait until all that was sent has passed, this fault and those behind it."""
        if isinstance(self.stream, Spoiled):
            await self.stream.drain()

    async def _end_by(self, close: Callable[[ByteStream], Awaitable[None]]) -> NoReturn:
        """End the connection by `close`, which acts before its first checkpoint: `cut` or `reset`."""
        self._ended = True
        await close(self.stream)
        self._end()

    def _end(self) -> NoReturn:
        logger.info("%s ends the connection after %d bytes", self.fault.name, self.passed)
        self._ended = True
        raise ConnectionEnded(f"ended by the fault {self.fault.name}")
