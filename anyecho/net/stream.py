"""The one stream of anyecho's own: an anyio `ByteStream` over a non-blocking socket.

The same on every backend, because it stands on readiness alone. It knows sockets and errno; it does not know
who polls for it, how it was connected or accepted, or what is said over it.

* The end of the peer's data is `EndOfStream`. Any `OSError` is `BrokenResourceError`; it is remembered, so that
  the clean end which the kernel reports after a reset is never taken for one.
* After `aclose`, and for `send` after `send_eof`, it is `ClosedResourceError`; a second call of the same
  direction while one runs is `BusyResourceError`.
* A cancelled `receive` loses no byte. A cancelled `send` may have sent a part.
"""

from __future__ import annotations

__all__ = ("PolledStream",)

import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import checkpoint

from anyecho.net.fallback import Registration

#: However small the calls' number, a stream that moved this much yields: 16 reads of the default size.
_BUDGET_BYTES = 1 << 20


class PolledStream(ByteStream):
    """`sock`, connected and non-blocking, as a stream that closes it.

    A call that had to wait has yielded to other tasks. One that did not yields before its system call, at the
    latest every `budget` calls or 1 MiB: with 1, every call is a checkpoint, as anyio promises; more is for a
    caller that loops and wants to pay less.
    """

    __slots__ = (
        "_broken",
        "_bytes_left",
        "_calls_left",
        "_closed",
        "_eof_sent",
        "_receiving",
        "_registration",
        "_sending",
        "_sock",
        "budget",
        "bytes_received",
        "bytes_sent",
    )

    def __init__(self, sock: socket.socket, registration: Registration, *, budget: int = 1) -> None:
        self._sock = sock
        self._registration = registration
        self._broken: OSError | None = None
        self._closed = False
        self._eof_sent = False
        self._receiving = False
        self._sending = False
        self.budget = budget
        self._calls_left = budget - 1
        self._bytes_left = _BUDGET_BYTES
        #: Totals; whoever wants to know whether anything moves looks whether they did.
        self.bytes_received = 0
        self.bytes_sent = 0

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if max_bytes <= 0:
            raise ValueError(f"max_bytes must be positive, not {max_bytes}")
        if self._closed:
            raise ClosedResourceError
        if self._receiving:
            raise BusyResourceError("receiving from")

        self._receiving = True
        try:
            if self._registration.may_read:
                await self._spend_call()
            # Nothing is awaited between recv(2) and return: a cancelled call has not taken any bytes.
            data = await self._recv(max_bytes)
        finally:
            self._receiving = False

        if not data:
            if self._broken is not None:
                raise BrokenResourceError from self._broken
            raise EndOfStream

        self.bytes_received += len(data)
        self._bytes_left -= len(data)
        return data

    async def _recv(self, max_bytes: int) -> bytes:
        while True:
            if not self._registration.may_read:
                await self._registration.readable()
                self._refill()
            try:
                return self._sock.recv(max_bytes)
            except BlockingIOError:
                self._registration.may_read = False
            except OSError as exc:
                raise self._translate(exc) from exc

    async def send(self, item: bytes) -> None:
        self._check_sendable()
        self._sending = True
        try:
            if not item:
                await checkpoint()
                return
            if self._registration.may_write:
                await self._spend_call()
            await self._send_all(item)
        finally:
            self._sending = False

    async def _send_all(self, item: bytes | memoryview) -> None:
        while True:
            if not self._registration.may_write:
                await self._registration.writable()
                self._refill()
            elif self._bytes_left <= 0:
                await self._yield()
            try:
                sent = self._sock.send(item)
            except BlockingIOError:
                self._registration.may_write = False
                continue
            except OSError as exc:
                raise self._translate(exc) from exc

            self.bytes_sent += sent
            self._bytes_left -= sent
            if sent == len(item):
                return

            item = memoryview(item)[sent:]

    async def send_eof(self) -> None:
        if self._eof_sent and not self._closed:
            await checkpoint()
            return

        self._check_sendable()
        self._sending = True
        try:
            await checkpoint()
            self._sock.shutdown(socket.SHUT_WR)
            self._eof_sent = True
        except OSError as exc:
            raise self._translate(exc) from exc
        finally:
            self._sending = False

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            await self._registration.aclose()
            self._sock.close()

        await checkpoint()

    def _check_sendable(self) -> None:
        if self._closed or self._eof_sent:
            raise ClosedResourceError
        if self._sending:
            raise BusyResourceError("sending to")
        if self._broken is not None:
            raise BrokenResourceError from self._broken

    def _translate(self, exc: OSError) -> Exception:
        # Closed by another task while this one yielded: then it is EBADF, and nobody's fault but the closer's.
        if self._closed:
            return ClosedResourceError()

        # A copy: the original's traceback would hold this stream, and the stream it.
        self._broken = self._broken or OSError(exc.errno, exc.strerror)
        return BrokenResourceError()

    async def _spend_call(self) -> None:
        if self._calls_left <= 0 or self._bytes_left <= 0:
            await self._yield()
        else:
            self._calls_left -= 1

    async def _yield(self) -> None:
        await checkpoint()
        self._refill()

    def _refill(self) -> None:
        self._calls_left = self.budget - 1
        self._bytes_left = _BUDGET_BYTES

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        sock = self._sock
        attributes: dict[Any, Callable[[], Any]] = {
            SocketAttribute.family: lambda: sock.family,
            SocketAttribute.raw_socket: lambda: sock,
        }
        # A reset connection has no peer any more, a closed one no name: then there is no such attribute.
        with suppress(OSError):
            local = sock.getsockname()
            attributes[SocketAttribute.local_address] = lambda: _two(local)
            if sock.family != socket.AF_UNIX:
                attributes[SocketAttribute.local_port] = lambda: local[1]
            remote = sock.getpeername()
            attributes[SocketAttribute.remote_address] = lambda: _two(remote)
            if sock.family != socket.AF_UNIX:
                attributes[SocketAttribute.remote_port] = lambda: remote[1]

        return attributes


def _two(sockaddr: Any) -> Any:
    # anyio gives (host, port) for IPv6 as well.
    return tuple(sockaddr[:2]) if isinstance(sockaddr, tuple) else sockaddr
