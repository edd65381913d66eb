"""Read the source of a connection from its PROXY header."""

from __future__ import annotations

__all__ = ("read_source",)

from typing import TYPE_CHECKING

from anyio import EndOfStream

from anyecho.net.names import SockAddr
from anyecho.net.poller import Fallback, Poller
from anyecho.net.proxy.header import ProxyProtocolError, Versions
from anyecho.net.proxy.reader import HeaderReader

if TYPE_CHECKING:
    import socket


async def read_source(sock: socket.socket, poller: Poller | Fallback, versions: Versions) -> SockAddr | None:
    """Wait for the PROXY header on `sock` and return the source that it asserts, or None if it asserts none.

    Consumes no byte after the header.
    Raises `ProxyProtocolError` if it is missing, invalid or ends early, `OSError` or `BrokenResourceError` if the
    connection fails. `sock` is not registered afterwards.
    """
    registration = poller.register(sock)
    try:
        return (await HeaderReader(sock, registration, versions).read()).source
    except EndOfStream:
        raise ProxyProtocolError("EOF inside the PROXY header") from None
    finally:
        await registration.aclose()
