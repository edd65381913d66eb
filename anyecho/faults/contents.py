"""Faults that cut the data into pieces, drop chunks of it or change bytes."""

from __future__ import annotations

__all__ = ("Corrupt", "PacketLoss", "Slicer")

import math
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar

from anyio import current_time, sleep_until
from anyio.abc import ByteStream, TaskGroup

from anyecho.faults.fault import Spoiled, StreamFault, logger
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

    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> ByteStream:
        return _Sliced(stream, self, random)


@dataclass(eq=False)
class _Sliced(Spoiled[Slicer]):
    #: When the next piece may pass.
    _due: float = field(init=False, default=-math.inf)

    async def _admit(self, size: int) -> int:
        if self._due > current_time():
            await sleep_until(self._due)
        fault = self.fault
        self._due = current_time() + fault.delay
        return fault.average_size + self.random.randint(-fault.size_variation, fault.size_variation)


@documented
@dataclass(frozen=True, kw_only=True)
class PacketLoss(StreamFault):
    """Chunks are dropped, as they come from the network or from a sender. Their bytes are missing in the stream."""

    name: ClassVar[str] = "packet_loss"
    probable: ClassVar[tuple[str, ...]] = (*StreamFault.probable, "loss_rate", "correlation")

    loss_rate: float = option(0.1, "The probability that a chunk is dropped.")
    correlation: float = option(0.0, "How much a chunk shares the fate of the last one: 0 not at all, 1 always.")

    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> ByteStream:
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
    probable: ClassVar[tuple[str, ...]] = (*StreamFault.probable, "rate")

    rate: float = option(0.0, "The probability that a byte is changed.")
    offset: Size | None = option(None, "Change the byte at this offset, counted from 0.")

    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> ByteStream:
        return _Corrupted(stream, self, random)


@dataclass(eq=False)
class _Corrupted(Spoiled[Corrupt]):
    #: The next byte to change by the rate, and the one at the offset: its offset, and the mask that changes it.
    _next: tuple[int, int] = field(init=False, default=(-1, 0))
    _fixed: tuple[int, int] = field(init=False, default=(-1, 0))

    def __post_init__(self) -> None:
        if self.fault.offset is not None:
            self._fixed = self.fault.offset, mask(self.random)
        self._draw()

    def _alter(self, piece: bytes) -> bytes:
        changed = bytearray(piece)
        end = self.passed + len(piece)
        changes = [self._fixed] if self.passed <= self._fixed[0] < end else []
        while 0 <= self._next[0] < end:
            changes.append(self._next)
            self._draw()
        for offset, bits in changes:
            at = offset - self.passed
            changed[at] ^= bits
            logger.info("corrupt: byte %d was 0x%02x, is 0x%02x", offset, piece[at], changed[at])

        return bytes(changed)

    def _draw(self) -> None:
        """Draw the offset and the mask together: their order must not depend on the chunks."""
        if self.fault.rate:
            self._next = self._next[0] + 1 + gap(self.random, self.fault.rate), mask(self.random)


def mask(random: Random) -> int:
    """Draw the bits to flip in a byte, at least one."""
    return random.randrange(1, 256)


def gap(random: Random, rate: float) -> int:
    """Draw the number of bytes before the next one that is changed, if each is with the probability `rate`."""
    return 0 if rate >= 1 else int(math.log(1 - random.random()) / math.log1p(-rate))
