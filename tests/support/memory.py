"""A pair of byte streams in memory, with unlimited buffers and no delay."""

from __future__ import annotations

__all__ = ("MemoryStream", "memory_pair")

import math
from dataclasses import dataclass, field

from anyio import BrokenResourceError, create_memory_object_stream
from anyio.abc import ByteStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream


@dataclass(eq=False)
class MemoryStream(ByteStream):
    """One end. A chunk arrives as it was sent, unless a receive asks for less."""

    incoming: MemoryObjectReceiveStream[bytes]
    outgoing: MemoryObjectSendStream[bytes]
    _rest: bytes = field(init=False, default=b"")

    async def receive(self, max_bytes: int = 65536) -> bytes:
        chunk = self._rest or await self.incoming.receive()
        self._rest = chunk[max_bytes:]
        return chunk[:max_bytes]

    async def send(self, item: bytes) -> None:
        if self.outgoing.statistics().open_receive_streams == 0:
            raise BrokenResourceError
        await self.outgoing.send(bytes(item))

    async def send_eof(self) -> None:
        self.outgoing.close()

    async def aclose(self) -> None:
        self.outgoing.close()
        self.incoming.close()


def memory_pair() -> tuple[MemoryStream, MemoryStream]:
    to_right, from_left = create_memory_object_stream[bytes](math.inf)
    to_left, from_right = create_memory_object_stream[bytes](math.inf)
    return MemoryStream(from_right, to_right), MemoryStream(from_left, to_left)
