"""Listeners that close at the end of a block, and the message of a `BindError`."""

from __future__ import annotations

__all__ = ("listening", "refused")

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from anyecho.address import parse_address
from anyecho.errors import BindError
from anyecho.net.listen import Listener, open_listeners
from anyecho.net.sockets import SocketOptions


@asynccontextmanager
async def listening(*addresses: str, backlog: int = 16) -> AsyncIterator[list[Listener]]:
    listeners = await open_listeners(
        [parse_address(address) for address in addresses], backlog=backlog, options=SocketOptions()
    )
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


async def refused(*addresses: str) -> str:
    with pytest.raises(BindError) as caught:
        async with listening(*addresses):
            pass

    return str(caught.value)
