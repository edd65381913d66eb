"""A handler that burns 1 ms of CPU for each message, then echoes it: ``--handler burning_handler:burn``."""

from __future__ import annotations

from time import thread_time_ns

from anyio.abc import ByteStream

_BURNT_NS = 1_000_000


async def burn(stream: ByteStream) -> None:
    async for message in stream:
        end = thread_time_ns() + _BURNT_NS
        while thread_time_ns() < end:
            pass
        await stream.send(message)
