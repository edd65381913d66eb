"""Bind one socket per endpoint of a host, all on one port. The caller makes and configures each socket."""

from __future__ import annotations

__all__ = ("bind_hosts",)

import errno
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any, TypeAlias

from anyecho.address import TCPAddress, UDPAddress
from anyecho.net.resolve import Endpoint, resolve

#: Returns a new socket of a family, bound to a socket address.
BindSocket: TypeAlias = Callable[[int, Any], socket.socket]

#: Attempts to find a port that is free in both families.
_PORT_TRIES = 64
#: Errors of socket(2) for a family that the kernel does not have.
_NO_SUCH_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


async def bind_hosts(address: TCPAddress | UDPAddress, bind_socket: BindSocket) -> list[socket.socket]:
    """Return a bound socket for every endpoint of `address`, IPv4 first; no host means every interface.

    Either every endpoint is bound or none. A family that this machine lacks is skipped if the other one is bound.
    With port 0 all endpoints have the same port. Raises `socket.gaierror`, `NoThreadError` if the name cannot be
    looked up, or the `OSError` of the first endpoint that failed, with its host as the `filename`.
    """
    if address.host:
        endpoints = sorted(await resolve(address.host, address.port), key=lambda endpoint: endpoint[0])
    else:
        port = address.port
        endpoints = [(socket.AF_INET, ("0.0.0.0", port)), (socket.AF_INET6, ("::", port, 0, 0))]

    for _ in range(_PORT_TRIES if address.port == 0 else 1):
        try:
            return _bind_each(endpoints, bind_socket)
        except OSError as exc:
            failure = exc
            if exc.errno != errno.EADDRINUSE:
                break

    raise failure


def _bind_each(endpoints: Sequence[Endpoint], bind_socket: BindSocket) -> list[socket.socket]:
    """Return one bound socket per endpoint, in their order. Port 0 becomes the port of the socket before.

    If one cannot be bound, all are closed and its `OSError` is raised, with the host as its file name. An endpoint
    of an address family that this machine lacks is left out, unless no other remains.
    """
    with ExitStack() as opened:
        sockets: list[socket.socket] = []
        failure: OSError | None = None
        port = 0
        for family, (host, wanted, *rest) in endpoints:
            try:
                sock = bind_socket(family, (host, wanted or port, *rest))
            except OSError as exc:
                failure = OSError(exc.errno, exc.strerror, host)
                if not _is_family_absent(family, exc):
                    raise failure from exc
            else:
                sockets.append(opened.enter_context(sock))
                port = sock.getsockname()[1]

        if failure is not None and not sockets:
            raise failure

        opened.pop_all()
        return sockets


def _is_family_absent(family: int, failure: OSError) -> bool:
    """Return whether a bind failed because this machine lacks the address family.

    With IPv6 disabled (net.ipv6.conf.*.disable_ipv6), bind(2) fails with EADDRNOTAVAIL for ``::1``, as it does for
    the address of another machine, which must be reported to the caller. A bind to loopback tells them apart.
    """
    if failure.errno in _NO_SUCH_FAMILY:
        return True
    if failure.errno != errno.EADDRNOTAVAIL:
        return False
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((_LOOPBACK[socket.AddressFamily(family)], 0))
        return False

    return True
