"""Faults that cut the data into pieces, drop chunks of it or change bytes."""

from __future__ import annotations

__all__ = ("Corrupt", "PacketLoss", "Slicer")

import math
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar

from anyio import current_time, sleep_until
from anyio.abc import ByteStream, TaskGroup

from anyecho.clock import due_after
from anyecho.faults.fault import Alter, StreamFault, logger
from anyecho.faults.spoiled import Spoiled
from anyecho.options import documented, option
from anyecho.units import Seconds, Size


@documented
@dataclass(frozen=True, kw_only=True)
class Slicer(StreamFault):
    """Data passes in small pieces, with a `delay` between them.

    A piece that comes in two chunks passes as two.
    """

    name: ClassVar[str] = "slicer"
    positive: ClassVar[tuple[str, ...]] = (*StreamFault.positive, "average_size")

    average_size: Size = option(1, "Bytes of a piece on average.")
    size_variation: Size = option(0, "The most by which a size differs; less than --average-size.")
    delay: Seconds = option(0.0, "The time between two pieces.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size_variation >= self.average_size:
            self._refuse("size_variation", f"less than average_size, {self.average_size}")

    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> _Sliced:
        return _Sliced(stream, self, random)


@dataclass(eq=False)
class _Sliced(Spoiled[Slicer]):
    #: When the next piece may pass.
    _due: float = field(init=False, default=-math.inf)

    def _restart(self) -> None:
        self._due = -math.inf
        super()._restart()

    async def _admit(self, size: int) -> int:
        if self._due > current_time():
            await sleep_until(self._due)
        fault = self.fault
        self._due = due_after(fault.delay)
        return fault.average_size + self.random.randint(-fault.size_variation, fault.size_variation)


@documented
@dataclass(frozen=True, kw_only=True)
class PacketLoss(StreamFault):
    """Chunks are dropped, as they come from the network or from a sender. Their bytes are missing in the stream."""

    name: ClassVar[str] = "packet_loss"
    probable: ClassVar[tuple[str, ...]] = (*StreamFault.probable, "loss_rate", "correlation")

    loss_rate: float = option(0.1, "The probability that a chunk is dropped.")
    correlation: float = option(0.0, "How much a chunk shares the fate of the last one: 0 not at all, 1 always.")

    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> _Lossy:
        return _Lossy(stream, self, random)


@dataclass(eq=False)
class _Lossy(Spoiled[PacketLoss]):
    _dropped: bool | None = field(init=False, default=None)

    def _alter(self, piece: bytes) -> bytes:
        self._dropped = is_dropped(self.random, self.fault.loss_rate, self.fault.correlation, self._dropped)
        if self._dropped:
            logger.info("packet_loss drops %d bytes at offset %d", len(piece), self.passed)
        return b"" if self._dropped else piece


def is_dropped(random: Random, rate: float, correlation: float, last: bool | None) -> bool:
    """Draw whether a chunk is dropped: a Markov chain, which drops `rate` on average whatever the `correlation`."""
    if last is not None:
        rate = rate * (1 - correlation) + correlation * last
    return random.random() < rate


@documented
@dataclass(frozen=True, kw_only=True)
class Corrupt(StreamFault):
    """Bytes are changed, at one `offset` or at a `rate`. Each is logged, with its value before and after."""

    name: ClassVar[str] = "corrupt"
    needs: ClassVar[tuple[str, ...]] = ("rate", "offset")
    carriers: ClassVar[tuple[str, ...]] = ("stream", "datagram")
    probable: ClassVar[tuple[str, ...]] = (*StreamFault.probable, "rate")

    rate: float = option(0.0, "The probability that a byte is changed.")
    offset: Size | None = option(None, "Change the byte at this offset, counted from 0.")

    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> _Corrupted:
        return _Corrupted(stream, self, random)

    def alter_datagrams(self, random: Random) -> Alter:
        """The offset is counted in each datagram."""

        def alter(due: float, datagram: bytes) -> list[tuple[float, bytes]]:
            return [(due, Changes(self, random).apply(datagram, 0))]

        return alter


@dataclass(eq=False)
class _Corrupted(Spoiled[Corrupt]):
    _changes: Changes = field(init=False)

    def __post_init__(self) -> None:
        self._changes = Changes(self.fault, self.random)

    def _restart(self) -> None:
        self._changes = Changes(self.fault, self.random, self.passed)
        super()._restart()

    def _alter(self, piece: bytes) -> bytes:
        return self._changes.apply(piece, self.passed)


class Changes:
    """The bytes of a stream that are changed, from the offset `start`, drawn in their order."""

    def __init__(self, fault: Corrupt, random: Random, start: int = 0) -> None:
        self._rate = fault.rate
        self._random = random
        #: The byte at the offset, and the next one by the rate: its offset, and the bits that are flipped.
        self._fixed = (-1, 0) if fault.offset is None else (fault.offset, mask(random))
        self._next = (start - 1, 0)
        self._draw()

    def apply(self, piece: bytes, start: int) -> bytes:
        """Return `piece`, which begins at the offset `start`, with its changes."""
        changed = bytearray(piece)
        end = start + len(piece)
        changes = [self._fixed] if start <= self._fixed[0] < end else []
        while 0 <= self._next[0] < end:
            changes.append(self._next)
            self._draw()
        for offset, bits in changes:
            at = offset - start
            changed[at] ^= bits
            logger.info("corrupt: byte %d was 0x%02x, is 0x%02x", offset, piece[at], changed[at])

        return bytes(changed)

    def _draw(self) -> None:
        """Draw the offset and the mask together: their order must not depend on the chunks."""
        if self._rate:
            self._next = self._next[0] + 1 + gap(self._random, self._rate), mask(self._random)
        else:
            self._next = -1, 0


def mask(random: Random) -> int:
    """Draw the bits to flip in a byte, at least one."""
    return random.randrange(1, 256)


def gap(random: Random, rate: float) -> int:
    """Draw the number of bytes before the next one that is changed, if each is with the probability `rate`."""
    return 0 if rate >= 1 else int(math.log(1 - random.random()) / math.log1p(-rate))
