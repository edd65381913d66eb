"""Read a PROXY header from a socket.

`header` parses it. The server sets the time limit and handles connections without a header.
"""

from __future__ import annotations

__all__ = ("HeaderReader",)

import socket
from dataclasses import dataclass, field

from anyio import BrokenResourceError, EndOfStream

from anyecho.net.proxy.header import HEADER_MAX, Header, ProxyProtocolError, Versions, parse_header
from anyecho.net.readiness import Registration


@dataclass(eq=False)
class HeaderReader:
    """Reads the PROXY header at the start of the non-blocking `sock`, and no byte after it.

    Afterwards TLS or a stream can use `sock` and `registration`: no bytes have to be pushed back.
    """

    sock: socket.socket
    registration: Registration
    versions: Versions = "require"
    _consumed: bytes = field(default=b"", init=False, repr=False)

    async def read(self) -> Header:
        """Wait for the header and return it, without a time limit. After cancellation, the next call continues.

        Raises `ProxyProtocolError` at the first byte that cannot belong to a header, or at an EOF inside it;
        `EndOfStream` at an EOF before it, as of a health check; `BrokenResourceError` after a reset;
        `ClosedResourceError` if the registration is closed.
        """
        while True:
            await self.registration.readable()
            try:
                if (header := self._try_read()) is not None:
                    return header
            except BlockingIOError:
                self.registration.may_read = False
            except OSError as exc:
                raise BrokenResourceError from exc

    def _try_read(self) -> Header | None:
        peeked = self.sock.recv(HEADER_MAX - len(self._consumed), socket.MSG_PEEK)
        if not peeked and not self._consumed:
            raise EndOfStream
        if not peeked:
            raise ProxyProtocolError("EOF inside the PROXY header")

        header = parse_header(self._consumed + peeked, self.versions)
        # All bytes of an incomplete header belong to it, so they are consumed: unread bytes would make a
        # level-triggered wait return at once for ever. poll(2) ignores SO_RCVLOWAT on Unix sockets.
        size = len(peeked) if header is None else header.length - len(self._consumed)
        self._consumed += self.sock.recv(size)
        return header
