"""A sender and a receiver on memory streams, with faults between them."""

from __future__ import annotations

__all__ = ("DIRECTIONS", "Line", "Spoil")

from collections.abc import Awaitable, Callable, Iterator
from typing import Generic, TypeAlias, TypeVar

from anyio import CancelScope, EndOfStream, create_task_group, current_time, move_on_after, sleep, sleep_forever
from anyio.abc import ByteStream, TaskGroup

from anyecho.faults import ConnectionEnded
from anyecho.faults.fault import Direction
from tests.support.memory import memory_pair

S = TypeVar("S", bound=ByteStream)
#: Puts faults on a stream.
Spoil: TypeAlias = Callable[[ByteStream], S]

DIRECTIONS: tuple[Direction, ...] = ("upstream", "downstream")


class Line(Generic[S]):
    """`spoiled` is the end with the faults: upstream it is the receiver, downstream the sender.

    Its streams are closed with `tasks`.
    """

    def __init__(self, direction: Direction, tasks: TaskGroup, spoil: Spoil[S]) -> None:
        self.start = current_time()
        self.plain, self._far = memory_pair()
        self.spoiled = spoil(self._far)
        self.sender: ByteStream = self.plain if direction == "upstream" else self.spoiled
        self.receiver: ByteStream = self.spoiled if direction == "upstream" else self.plain
        #: What has arrived, and when. EOF is the empty chunk, an end by a fault is ``ended``.
        self.arrived: list[tuple[float, bytes]] = []
        #: What cancels the receive that waits.
        self.receiving = CancelScope()
        tasks.start_soon(self._close_at_the_end)

    async def _close_at_the_end(self) -> None:
        try:
            await sleep_forever()
        finally:
            await self.plain.aclose()
            await self._far.aclose()

    def now(self) -> float:
        return round(current_time() - self.start, 6)

    async def until(self, time: float) -> None:
        await sleep(self.start + time - current_time())

    async def send(self, *chunks: bytes, eof: bool = False) -> None:
        for chunk in chunks:
            await self.sender.send(chunk)
        if eof:
            await self.sender.send_eof()

    async def listen(self, patience: Iterator[float] | None = None, max_bytes: int = 65536) -> None:
        """Note what arrives until the end. A receive is cancelled when its `patience` is over, and made again."""
        try:
            while True:
                with move_on_after(next(patience) if patience else None) as self.receiving:
                    chunk = await self.receiver.receive(max_bytes)
                    self.arrived.append((self.now(), chunk))
        except EndOfStream:
            self.arrived.append((self.now(), b""))
        except ConnectionEnded:
            self.arrived.append((self.now(), b"ended"))

    @property
    def received(self) -> bytes:
        """The bytes that have arrived, once the end has too."""
        return b"".join(chunk for _, chunk in self.arrived[:-1])

    async def arrivals(self, send: Callable[[ByteStream], Awaitable[None]]) -> list[tuple[float, bytes]]:
        """Call `send` and half-close; return what has arrived."""

        async def run() -> None:
            await send(self.sender)
            await self.sender.send_eof()

        async with create_task_group() as sending:
            sending.start_soon(run)
            await self.listen()

        return self.arrived
