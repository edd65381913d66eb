"""A client on asyncio that asks one question per connection: as it was, and mended with stamina."""

from __future__ import annotations

import asyncio

import stamina


async def ask_before(host: str, port: int, question: bytes) -> bytes:
    """Return the answer to `question`, a line, if the network does nothing but what it does on one machine."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(question)
        return await reader.read(100)
    finally:
        writer.close()


@stamina.retry(on=(OSError, asyncio.IncompleteReadError), attempts=5, timeout=30)
async def ask(host: str, port: int, question: bytes, *, timeout: float = 1.0) -> bytes:
    """Return the answer to `question`, a line. Ask again on a new connection if one fails, or takes `timeout`."""
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(question)
            return await reader.readuntil(b"\n")
        finally:
            writer.close()
