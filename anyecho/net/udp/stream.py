"""A connected UDP socket as an anyio stream of datagrams, for clients.

Nothing is awaited between the system call and the return, so that a cancelled call loses no datagram. Matching
replies to requests is not done here.
"""

from __future__ import annotations

__all__ = ("DATAGRAM_MAX", "DatagramStream", "connect_datagrams")

import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError
from anyio.abc import UnreliableObjectStream
from anyio.lowlevel import checkpoint

from anyecho.address import UDPAddress
from anyecho.net.poller import Fallback, Poller
from anyecho.net.readiness import Registration
from anyecho.net.resolve import Endpoint, IPVersion, connect_errors, most_telling, resolve
from anyecho.net.sockets import SocketOptions, closed_on_error
from anyecho.net.stream import SocketOwner

logger = logging.getLogger("anyecho.client")

#: The largest datagram there is, headers included.
_BUFFER_SIZE = 65536
#: The largest payload over IPv4. (Over IPv6 it is 65527, and the kernel accepts that.)
DATAGRAM_MAX = 65507
#: send(2) fails once with EMSGSIZE for each earlier datagram that exceeded the path MTU.
_SEND_TRIES = 4


async def connect_datagrams(
    address: UDPAddress,
    *,
    family: IPVersion | None = None,
    options: SocketOptions,
    poller: Poller | Fallback | None = None,
) -> DatagramStream:
    """Return a stream to the first endpoint of `address` that has a route, IPv4 before IPv6.

    Connecting does not show whether a server is there; `DatagramStream.reconnect` goes on to the next endpoint.
    Raises `ConnectError` when the name does not resolve or no endpoint has a route.
    """
    with connect_errors(address):
        found = await resolve(address.host or "localhost", address.port, version=family)
        # IPv4 first: a server is most often bound to 127.0.0.1 rather than to ::1.
        endpoints = sorted(found, key=lambda endpoint: endpoint[0])
        return DatagramStream(address, endpoints, options=options, poller=poller or Fallback())


class DatagramStream(SocketOwner, UnreliableObjectStream[bytes]):
    """A stream of datagrams to the first of `endpoints` that has a route. Raises `OSError` if none has one.

    An `OSError` of a call is raised as `BrokenResourceError` with that as its cause. It may be about a datagram
    sent before (ECONNREFUSED); the stream stays usable. EMSGSIZE is raised only for an item larger than any
    datagram. Otherwise it is about the path MTU, and the datagram that exceeds it counts as lost.

    `address` is the one the caller gave. The stream owns its socket.
    """

    def __init__(
        self, address: UDPAddress, endpoints: list[Endpoint], *, options: SocketOptions, poller: Poller | Fallback
    ) -> None:
        self.address = address
        self._endpoints = deque(endpoints)
        self._options = options
        self._poller = poller
        self._closed = False
        self._sending = False
        self._connect()

    def _connect(self) -> None:
        """Connect to the next endpoint that has a route. Raises `OSError` if none is left."""
        failures: list[OSError] = []
        while self._endpoints:
            try:
                return self._connect_to(*self._endpoints.popleft())
            except OSError as exc:
                failures.append(exc)

        raise most_telling(failures)

    def _connect_to(self, family: socket.AddressFamily, sockaddr: Any) -> None:
        with closed_on_error(socket.socket(family, socket.SOCK_DGRAM)) as sock:
            sock.setblocking(False)
            self._options.apply(sock)
            sock.connect(sockaddr)
            # If `sockaddr` is a free ephemeral port, the kernel may bind the socket to it. The socket would then
            # receive its own datagrams.
            if sock.getsockname() == sock.getpeername():
                raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            self._registration = self._poller.register(sock)

        self._sock = sock

    def receive_nowait(self) -> bytes | None:
        """Return the next datagram, or None if none is queued."""
        if self._closed:
            raise ClosedResourceError
        while True:
            try:
                datagram = self._sock.recv(_BUFFER_SIZE)
            except BlockingIOError:
                self._registration.may_read = False
                return None
            except OSError as exc:
                # A router has reported the path MTU: a datagram sent before exceeded it, and is lost.
                if exc.errno != errno.EMSGSIZE:
                    raise BrokenResourceError from exc
            else:
                self._endpoints.clear()  # a server is there
                return datagram

    async def readable(self) -> None:
        """Return once the socket is readable."""
        await self._ready(self._registration, self._registration.readable)

    async def _ready(self, registration: Registration, wait: Callable[[], Awaitable[None]]) -> None:
        try:
            await wait()
        except ClosedResourceError:
            if self._closed or registration is self._registration:
                raise  # otherwise `reconnect` has replaced the socket

    async def reconnect(self, unanswered: Iterable[bytes]) -> bool:
        """Connect to the next endpoint of the address and send `unanswered` there. Return false if none is left.

        None is left once a datagram has been received. Pending calls of other tasks go on with the new socket. A
        datagram of `unanswered` for which the send buffer has no room is lost.
        """
        items = list(unanswered)
        while self._endpoints and not self._closed:
            sock, registration = self._sock, self._registration
            try:
                self._connect()
            except OSError:
                break  # no route for their families: the error of the first endpoint says more

            try:
                # Nothing is awaited before this, so no other task has sent on the new socket.
                for item in items:
                    self.send_nowait(item)
                return True
            except BrokenResourceError:
                continue
            finally:
                with sock:
                    await registration.aclose()

        return False

    async def receive(self) -> bytes:
        await checkpoint()
        while (datagram := self.receive_nowait()) is None:
            await self.readable()

        return datagram

    async def send(self, item: bytes) -> None:
        if self._sending:
            raise BusyResourceError("sending to")

        self._sending = True
        try:
            await checkpoint()
            while not self.send_nowait(item):
                await self._ready(self._registration, self._registration.writable)
        finally:
            self._sending = False

    def send_nowait(self, item: bytes) -> bool:
        """Send `item`; return false if the send buffer has no room for it. The errors are those of `send`."""
        if self._closed:
            raise ClosedResourceError
        for tries_left in reversed(range(_SEND_TRIES)):
            try:
                self._sock.send(item)
            except BlockingIOError:
                self._registration.may_write = False
                return False
            except OSError as exc:
                if exc.errno != errno.EMSGSIZE or (len(item) > DATAGRAM_MAX and not tries_left):
                    raise BrokenResourceError from exc
            else:
                return True

        logger.debug("a datagram of %d bytes was not sent, and is lost: it is too long for the path", len(item))
        return True
