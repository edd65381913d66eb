"""Connect a stream to an address by Happy Eyeballs (RFC 8305): the first endpoint to accept wins."""

from __future__ import annotations

__all__ = ("CARRIERS", "ConnectStep", "connect_stream")

import errno
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from itertools import zip_longest
from typing import Any, Literal, TypeAlias

from anyio import BrokenResourceError, CancelScope, Event, create_task_group, move_on_after, sleep
from anyio.abc import SocketAttribute

from anyecho.address import Address, FDAddress, TCPAddress, UDPAddress, UnixAddress
from anyecho.errors import ConnectError, unwrap_single
from anyecho.net.poller import Fallback, Poller
from anyecho.net.proxy.header import encode_header
from anyecho.net.resolve import Endpoint, IPVersion, connect_errors, most_telling, resolve
from anyecho.net.sockets import SocketOptions, closed_on_error
from anyecho.net.stream import PolledStream
from anyecho.net.tls.connect import client_session, secure
from anyecho.net.tls.contexts import TLSClientOptions

#: Connection Attempt Delay of RFC 8305, section 5, in seconds.
_ATTEMPT_DELAY = 0.25
#: Seconds between attempts to connect to a Unix socket with a full accept backlog.
_BACKLOG_DELAY = 0.01
#: "begun" is after the files of TLS are read. An address without a name or TLS has no "resolved" or "secured".
ConnectStep: TypeAlias = Literal["begun", "resolved", "connected", "secured"]


async def connect_stream(
    address: Address,
    *,
    family: IPVersion | None = None,
    options: SocketOptions,
    tls: TLSClientOptions | None = None,
    poller: Poller | Fallback | None = None,
    proxy_header: Literal["off", "v1", "v2"] = "off",
    on_step: Callable[[ConnectStep], object] | None = None,
) -> PolledStream:
    """Return a stream connected to `address`; the caller closes it.

    `poller` reports its readiness, or the event loop if it is None. `proxy_header` is the version of the PROXY
    header, with the addresses of this connection, that is sent first. `on_step` is called after each step.

    Raises `ConnectError` if no endpoint accepts or TLS fails, and `CertificateError` if a file of `tls` cannot be
    used. Cancellation closes all attempts.
    """
    if isinstance(address, FDAddress):
        raise ConnectError(f"cannot connect to {address}: a descriptor is for servers")
    if isinstance(address, UDPAddress):
        raise ConnectError(f"cannot connect to {address}: there is no stream of datagrams")

    reached = on_step or (lambda _: None)
    records = client_session(address, tls or TLSClientOptions()) if address.tls else None
    reached("begun")
    with connect_errors(address):
        endpoints = await CARRIERS[type(address)](address, family)
        if isinstance(address, TCPAddress):
            reached("resolved")
        stream = await _race(endpoints, options, poller or Fallback())
        reached("connected")

    if proxy_header != "off":
        await _send_proxy_header(stream, proxy_header, address)
    if records is not None:
        stream = await secure(stream, records, address)
        reached("secured")

    return stream


async def _tcp_endpoints(address: TCPAddress, family: IPVersion | None) -> Sequence[Endpoint]:
    return _interleave(await resolve(address.host or "localhost", address.port, version=family))


async def _unix_endpoints(address: UnixAddress, family: IPVersion | None) -> Sequence[Endpoint]:
    return [(socket.AF_UNIX, os.fsencode(address.path))]


#: How to find the endpoints of each type of address, in the order of the attempts. A carrier adds its type.
CARRIERS: dict[type[Address], Callable[[Any, IPVersion | None], Awaitable[Sequence[Endpoint]]]] = {
    TCPAddress: _tcp_endpoints,
    UnixAddress: _unix_endpoints,
}


async def _send_proxy_header(stream: PolledStream, version: Literal["v1", "v2"], address: Address) -> None:
    sock = stream.extra(SocketAttribute.raw_socket)
    try:
        await stream.send(encode_header(version, sock.getsockname(), sock.getpeername()))
    except BaseException as exc:
        await _close_all([stream])
        if not isinstance(exc, BrokenResourceError | OSError):
            raise
        raise ConnectError(f"cannot connect to {address}: it was closed on the PROXY header") from exc


def _interleave(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Alternate the address families, beginning with the family of the first endpoint (RFC 8305, section 4)."""
    preferred = endpoints[0][0]
    first = [endpoint for endpoint in endpoints if endpoint[0] == preferred]
    second = [endpoint for endpoint in endpoints if endpoint[0] != preferred]
    return [endpoint for pair in zip_longest(first, second) for endpoint in pair if endpoint is not None]


async def _race(endpoints: Sequence[Endpoint], options: SocketOptions, poller: Poller | Fallback) -> PolledStream:
    """Return the stream of the first attempt that succeeds, and close the other attempts.

    The next attempt starts when the last one failed, or `_ATTEMPT_DELAY` after it began. If all attempts fail,
    raises the error that says most about the peer.
    """
    winners: list[PolledStream] = []
    failures: list[OSError] = []

    async def attempt(endpoint: Endpoint, failed: Event) -> None:
        try:
            winners.append(await _connect(endpoint, options, poller))
            attempts.cancel_scope.cancel()
        except OSError as exc:
            failures.append(exc)
            failed.set()

    try:
        with unwrap_single():
            async with create_task_group() as attempts:
                for endpoint in endpoints:
                    failed = Event()
                    attempts.start_soon(attempt, endpoint, failed)
                    with move_on_after(_ATTEMPT_DELAY):
                        await failed.wait()
    except BaseException:
        # An attempt may have succeeded in the turn of the event loop that cancelled this task: close its stream.
        await _close_all(winners)
        raise

    if not winners:
        raise most_telling(failures)

    await _close_all(winners[1:])  # two attempts can succeed in one turn
    return winners[0]


async def _close_all(streams: Sequence[PolledStream]) -> None:
    with CancelScope(shield=True):
        for stream in streams:
            await stream.aclose()


async def _connect(endpoint: Endpoint, options: SocketOptions, poller: Poller | Fallback) -> PolledStream:
    family, sockaddr = endpoint
    with closed_on_error(socket.socket(family, socket.SOCK_STREAM)) as sock:
        sock.setblocking(False)
        options.apply(sock)
        code = sock.connect_ex(sockaddr)
        while code == errno.EAGAIN and family == socket.AF_UNIX:
            # The accept backlog of the Unix listener is full. No event reports room in it, hence the sleep.
            await sleep(_BACKLOG_DELAY)
            code = sock.connect_ex(sockaddr)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))

        # Register only now: a socket that is not connecting yet reports EPOLLHUP.
        registration = poller.register(sock)
        try:
            registration.may_write = code == 0
            await registration.writable()
            if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, os.strerror(code))
            # TCP self-connect: the kernel can choose an unused ephemeral destination port as the source port too.
            # The socket is then connected to itself, and receives what it sent without a server.
            if family != socket.AF_UNIX and sock.getsockname() == sock.getpeername():
                raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        except BaseException:
            await registration.aclose()
            raise

    return PolledStream(sock, registration)
