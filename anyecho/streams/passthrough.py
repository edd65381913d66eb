"""Base class of byte streams that wrap a stream and override the methods that they change."""

from __future__ import annotations

__all__ = ("Passthrough",)

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from anyio.abc import ByteStream


@dataclass(eq=False)
class Passthrough(ByteStream):
    """Forwards every call to `stream`; owns and closes it."""

    stream: ByteStream

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self.stream.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        await self.stream.send(item)

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def aclose(self) -> None:
        await self.stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self.stream.extra_attributes
