"""Connecting: from an address to a stream, by whichever of its endpoints answers first (RFC 8305)."""

from __future__ import annotations

__all__ = ("connect_stream",)

import errno
import os
import socket
from collections.abc import Sequence
from typing import Literal

from anyio import BrokenResourceError, CancelScope, Event, create_task_group, move_on_after, sleep
from anyio.abc import SocketAttribute

from anyecho.address import Address, FDAddress, UDPAddress, UnixAddress
from anyecho.errors import ConnectError, unwrap_single
from anyecho.net.names import Endpoint, most_telling, resolve
from anyecho.net.poller import Fallback, Poller
from anyecho.net.proxy_protocol import encode_header
from anyecho.net.sockets import SocketOptions
from anyecho.net.stream import PolledStream
from anyecho.net.tls_connect import client_session, secure
from anyecho.net.tls_contexts import TLSClientOptions

#: How long one endpoint is tried alone before the next one joins (RFC 8305, section 5).
_ATTEMPT_DELAY = 0.25
#: How often to knock at a Unix socket whose backlog is full.
_BACKLOG_DELAY = 0.01
_FAMILIES = {None: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}


async def connect_stream(
    address: Address,
    *,
    family: Literal[4, 6] | None = None,
    options: SocketOptions,
    tls: TLSClientOptions | None = None,
    poller: Poller | Fallback | None = None,
    proxy_header: Literal["off", "v1", "v2"] = "off",
) -> PolledStream:
    """A stream connected to `address`, whose readiness `poller` reports (without one, the event loop).

    With `proxy_header`, the first that is said on it is who calls, as a proxy would say it (PROXY protocol). Raises
    `ConnectError`, one line, when no endpoint could be connected to, or TLS did not come about there;
    `CertificateError` if `tls` has a file that cannot be used.
    """
    if isinstance(address, FDAddress):
        raise ConnectError(f"cannot connect to {address}: a descriptor is for servers")
    if isinstance(address, UDPAddress):
        raise ConnectError(f"cannot connect to {address}: there is no stream of datagrams")

    records = client_session(address, tls or TLSClientOptions()) if address.tls else None
    try:
        endpoints: Sequence[Endpoint]
        if isinstance(address, UnixAddress):
            endpoints = [(socket.AF_UNIX, os.fsencode(address.path))]
        else:
            found = await resolve(address.host or "localhost", address.port, family=_FAMILIES[family])
            endpoints = _interleave(found)
        stream = await _race(endpoints, options, poller or Fallback())
    except socket.gaierror as exc:
        raise ConnectError(f"cannot connect to {address}: no such host ({exc.strerror})") from exc
    except (OSError, UnicodeError) as exc:
        raise ConnectError(f"cannot connect to {address}: {getattr(exc, 'strerror', exc)}") from exc

    if proxy_header != "off":
        await _send_proxy_header(stream, proxy_header, address)
    return stream if records is None else await secure(stream, records, address)


async def _send_proxy_header(stream: PolledStream, version: Literal["v1", "v2"], address: Address) -> None:
    sock = stream.extra(SocketAttribute.raw_socket)
    try:
        await stream.send(encode_header(version, sock.getsockname(), sock.getpeername()))
    except (BrokenResourceError, OSError) as exc:
        await _close_all([stream])
        raise ConnectError(f"cannot connect to {address}: it was closed on the PROXY header") from exc
    except BaseException:
        await _close_all([stream])
        raise


def _interleave(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """By turns of the two families, the resolver's favourite first (RFC 8305, section 4)."""
    favourite = endpoints[0][0]
    first = [endpoint for endpoint in endpoints if endpoint[0] == favourite]
    second = [endpoint for endpoint in endpoints if endpoint[0] != favourite]
    mixed = [endpoint for pair in zip(first, second, strict=False) for endpoint in pair]
    shorter = min(len(first), len(second))
    return mixed + first[shorter:] + second[shorter:]


async def _race(endpoints: Sequence[Endpoint], options: SocketOptions, poller: Poller | Fallback) -> PolledStream:
    """Start one attempt after another, each a little later or once the one before failed; keep the first to win.

    Raises the error of the attempt that tells most of the peer.
    """
    winners: list[PolledStream] = []
    failures: list[OSError] = []

    async def attempt(endpoint: Endpoint, failed: Event, race: CancelScope) -> None:
        try:
            stream = await _connect(endpoint, options, poller)
        except OSError as exc:
            failures.append(exc)
            failed.set()
        else:
            winners.append(stream)
            race.cancel()

    try:
        with unwrap_single():
            async with create_task_group() as attempts:
                for endpoint in endpoints:
                    failed = Event()
                    attempts.start_soon(attempt, endpoint, failed, attempts.cancel_scope)
                    with move_on_after(_ATTEMPT_DELAY):
                        await failed.wait()
    except BaseException:
        # One may have won in the turn of the loop in which we were cancelled: nobody will own it.
        await _close_all(winners)
        raise

    if not winners:
        raise most_telling(failures)

    await _close_all(winners[1:])  # two may win in one turn
    return winners[0]


async def _close_all(streams: Sequence[PolledStream]) -> None:
    with CancelScope(shield=True):
        for stream in streams:
            await stream.aclose()


async def _connect(endpoint: Endpoint, options: SocketOptions, poller: Poller | Fallback) -> PolledStream:
    family, sockaddr = endpoint
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        options.apply(sock)
        code = sock.connect_ex(sockaddr)
        while code == errno.EAGAIN and family == socket.AF_UNIX:
            # A Unix listener's backlog is full. There is no event for the moment it is not, hence a sleep.
            await sleep(_BACKLOG_DELAY)
            code = sock.connect_ex(sockaddr)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))

        # Only now: a socket that is not connecting yet reports a hang-up.
        registration = poller.register(sock)
        try:
            registration.may_write = code == 0
            await registration.writable()
            if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, os.strerror(code))
            # A dead port among the ephemeral ones can be given to the very socket that calls it: TCP then
            # connects it to itself, and what comes back is no echo.
            if family != socket.AF_UNIX and sock.getsockname() == sock.getpeername():
                raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        except BaseException:
            await registration.aclose()
            raise
    except BaseException:
        sock.close()
        raise

    return PolledStream(sock, registration)
