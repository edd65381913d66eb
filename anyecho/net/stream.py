"""An anyio `ByteStream` over a non-blocking socket, the same on every backend.

It must not know what reports readiness to it, how the socket was connected or accepted, or what is sent over it.

* EOF raises `EndOfStream`. An `OSError` raises `BrokenResourceError` and is remembered: after a reset the kernel
  reports EOF, which must not be mistaken for a clean end.
* A call after `aclose`, or `send` after `send_eof`, raises `ClosedResourceError`. A second call of the same
  direction while one runs raises `BusyResourceError`.
* A cancelled `receive` loses no byte. A cancelled `send` may have sent a part.
"""

from __future__ import annotations

__all__ = ("PolledStream", "SocketOwner")

import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import checkpoint

from anyecho.net.readiness import Registration

#: A stream yields after this many bytes, however few the calls: 16 reads of the default size.
_BUDGET_BYTES = 1 << 20


class SocketOwner:
    """The part of a stream that closes its socket, and tells about it."""

    _sock: socket.socket
    _registration: Registration
    _closed: bool

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            await self._registration.aclose()
            self._sock.close()

        await checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return _attributes_of(self._sock)


class PolledStream(SocketOwner, ByteStream):
    """A stream over `sock`, which is connected and non-blocking. The stream owns and closes it.

    A call that waits yields to other tasks. Calls that do not wait yield before their system call, at the latest
    every `budget` calls or 1 MiB (fairness). With 1, every call is a checkpoint, as anyio promises. A larger budget
    costs a caller that loops less.
    """

    __slots__ = (
        "_broken",
        "_bytes_left",
        "_calls_left",
        "_closed",
        "_eof_sent",
        "_receiving",
        "_registration",
        "_sock",
        "budget",
        "bytes_received",
        "bytes_sent",
        "rest",
        "sending",
    )

    def __init__(self, sock: socket.socket, registration: Registration, *, budget: int = 1) -> None:
        self._sock = sock
        self._registration = registration
        self._broken: OSError | None = None
        self._closed = False
        self._eof_sent = False
        self._receiving = False
        #: Whether a `send` or `send_eof` waits or runs.
        self.sending = False
        self.budget = budget
        self._calls_left = budget - 1
        self._bytes_left = _BUDGET_BYTES
        #: Totals; their growth shows that the peer makes progress.
        self.bytes_received = 0
        self.bytes_sent = 0
        #: Bytes that the last `send`, cancelled or failed, has not sent.
        self.rest: bytes | memoryview = b""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if max_bytes <= 0:
            raise ValueError(f"max_bytes must be positive, not {max_bytes}")
        if self._closed:
            raise ClosedResourceError
        if self._receiving:
            raise BusyResourceError("receiving from")

        registration = self._registration
        self._receiving = True
        try:
            if registration.may_read and self._is_budget_spent():
                await self._yield()
            while True:
                if not registration.may_read:
                    await registration.readable()
                    self._reset_budget()
                try:
                    # Nothing is awaited between recv(2) and return: a cancelled call has not taken any bytes.
                    data = self._sock.recv(max_bytes)
                    break
                except BlockingIOError:
                    registration.may_read = False
        except OSError as exc:
            raise self._translate(exc) from exc
        finally:
            self._receiving = False

        if not data:
            raise EndOfStream if self._broken is None else BrokenResourceError from self._broken

        if len(data) < max_bytes and registration.short_read_drains:
            registration.may_read = False
        self.bytes_received += len(data)
        self._bytes_left -= len(data)
        return data

    async def send(self, item: bytes | memoryview) -> None:
        self._check_sendable()
        registration = self._registration
        # Cast, because len() of a memoryview of ints counts ints, not bytes.
        rest: bytes | memoryview = item if type(item) is bytes else memoryview(item).cast("B")
        self.sending = True
        try:
            if not rest or (registration.may_write and self._is_budget_spent()):
                await self._yield()
            while rest:
                if not registration.may_write:
                    await registration.writable()
                    self._reset_budget()
                elif self._bytes_left <= 0:
                    await self._yield()
                try:
                    sent = self._sock.send(rest)
                except BlockingIOError:
                    registration.may_write = False
                else:
                    self.bytes_sent += sent
                    self._bytes_left -= sent
                    rest = memoryview(rest)[sent:] if sent < len(rest) else b""
        except OSError as exc:
            raise self._translate(exc) from exc
        finally:
            self.sending = False
            self.rest = rest

    def send_nowait(self, item: bytes) -> bool:
        """Send what the kernel takes at once; return whether that is all.

        If not, `send(self.rest)` sends the rest, or raises the error of the connection.
        """
        self._check_sendable()
        self.rest = item
        try:
            return self._send_rest()
        except BlockingIOError:
            pass
        except OSError as exc:
            self._translate(exc)

        return False

    def _send_rest(self) -> bool:
        sent = self._sock.send(self.rest)
        self.bytes_sent += sent
        self.rest = self.rest[sent:]
        return not self.rest

    async def send_eof(self) -> None:
        if self._closed or not self._eof_sent:
            self._check_sendable()
        if self.sending:
            raise BusyResourceError("sending to")

        self.sending = True
        try:
            await checkpoint()
            await self._shut_down()
        except OSError as exc:
            raise self._translate(exc) from exc
        finally:
            self.sending = False

    async def _shut_down(self) -> None:
        if not self._eof_sent:
            self._sock.shutdown(socket.SHUT_WR)
            self._eof_sent = True

    def _check_sendable(self) -> None:
        if self._closed or self._eof_sent:
            raise ClosedResourceError
        if self.sending:
            raise BusyResourceError("sending to")
        if self._broken is not None:
            raise BrokenResourceError from self._broken

    def _translate(self, exc: OSError) -> Exception:
        # Another task closed the socket while this one yielded: EBADF is no failure of the connection.
        if self._closed:
            return ClosedResourceError()

        # A copy: the traceback of the original refers to this stream, which would make a reference cycle.
        self._broken = self._broken or type(exc)(*exc.args)
        return BrokenResourceError()

    def _is_budget_spent(self) -> bool:
        self._calls_left -= 1
        return self._calls_left < 0 or self._bytes_left <= 0

    async def _yield(self) -> None:
        await checkpoint()
        self._reset_budget()

    def _reset_budget(self) -> None:
        self._calls_left = self.budget - 1
        self._bytes_left = _BUDGET_BYTES


def _attributes_of(sock: socket.socket) -> Mapping[Any, Callable[[], Any]]:
    """Return the `extra_attributes` of a stream over `sock`."""
    attributes: dict[Any, Callable[[], Any]] = {
        SocketAttribute.family: lambda: sock.family,
        SocketAttribute.raw_socket: lambda: sock,
    }
    # After a reset getpeername(2) fails, after a close getsockname(2): then the attribute is missing.
    with suppress(OSError):
        local = sock.getsockname()
        attributes[SocketAttribute.local_address] = lambda: _host_port(local)
        if sock.family != socket.AF_UNIX:
            attributes[SocketAttribute.local_port] = lambda: local[1]
        remote = sock.getpeername()
        attributes[SocketAttribute.remote_address] = lambda: _host_port(remote)
        if sock.family != socket.AF_UNIX:
            attributes[SocketAttribute.remote_port] = lambda: remote[1]

    return attributes


def _host_port(sockaddr: Any) -> Any:
    # anyio gives (host, port) for IPv6 too.
    return tuple(sockaddr[:2]) if isinstance(sockaddr, tuple) else sockaddr
