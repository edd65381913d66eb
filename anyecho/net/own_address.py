"""Whether a connection to an address would lead to a listener of this process.

It sends nothing: a datagram socket that is connected shows the route only.
"""

from __future__ import annotations

__all__ = ("check_not_own",)

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address

from anyecho.address import Address, TCPAddress, UnixAddress
from anyecho.clock import run_within
from anyecho.errors import UsageError
from anyecho.net.resolve import Endpoint, resolve

#: Maximum seconds of a look-up. A name that cannot be resolved now does not keep a server from starting.
_LOOK_UP_TIMEOUT = 5.0
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


async def check_not_own(upstream: Address, listening: Sequence[Address]) -> None:
    """Raise `UsageError` if a connection to `upstream` would be accepted on one of `listening`.

    Names are looked up only if the ports are equal. For a wildcard this is certain for loopback addresses, and for
    those of this machine from which it would connect to them.
    """
    for own in listening:
        if await _leads_to(upstream, own):
            raise UsageError(f"cannot forward to {upstream}: this server listens there itself")


async def _leads_to(upstream: Address, own: Address) -> bool:
    if isinstance(upstream, UnixAddress) and isinstance(own, UnixAddress):
        return _is_same_path(upstream.path, own.path)
    if not (isinstance(upstream, TCPAddress) and isinstance(own, TCPAddress) and upstream.port == own.port):
        return False

    bound = await _look_up(own) if own.host else [*_endpoints_of_wildcards(own.port)]
    return any(_is_accepted(_reached(endpoint), bound) for endpoint in await _look_up(upstream))


def _is_same_path(path: str, own: str) -> bool:
    if path == own:
        return True
    with suppress(OSError, ValueError):  # an abstract name has a NUL
        return os.path.samefile(path, own)

    return False


async def _look_up(address: TCPAddress) -> list[Endpoint]:
    async def look_up() -> list[Endpoint]:
        return await resolve(address.host or "localhost", address.port)

    try:
        return await run_within(_LOOK_UP_TIMEOUT, look_up)
    except (OSError, UnicodeError):  # TimeoutError too
        return []


def _endpoints_of_wildcards(port: int) -> list[Endpoint]:
    return [(socket.AF_INET6, ("::", port, 0, 0)), (socket.AF_INET, ("0.0.0.0", port))]


def _reached(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint that connect(2) reaches: for a wildcard, loopback."""
    family, (host, *rest) = endpoint
    return family, (_WILDCARDS.get(host, host), *rest)


def _is_accepted(endpoint: Endpoint, bound: Sequence[Endpoint]) -> bool:
    if endpoint in bound:
        return True

    family = endpoint[0]
    wildcard = any(kind == family and sockaddr[0] in _WILDCARDS for kind, sockaddr in bound)
    return wildcard and _is_local(endpoint)


def _is_local(endpoint: Endpoint) -> bool:
    family, sockaddr = endpoint
    if ip_address(sockaddr[0].partition("%")[0]).is_loopback:
        return True
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect(sockaddr)
        return bool(sock.getsockname()[0] == sockaddr[0])

    return False
