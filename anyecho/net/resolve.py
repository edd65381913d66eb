"""Host names to endpoints, and which of several failures to report.

This module opens no sockets. Name look-ups run in threads with a limit of their own.
"""

from __future__ import annotations

__all__ = ("Endpoint", "IPVersion", "connect_errors", "look_up_limiter", "most_telling", "resolve")

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from ipaddress import IPv6Address
from typing import Any, Literal, TypeAlias

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from anyecho.address import Address
from anyecho.errors import ConnectError
from anyecho.net.names import host_name, unmapped
from anyecho.net.threads import run_in_thread

#: (family, socket address), ready for bind(2) or connect(2).
Endpoint: TypeAlias = tuple[socket.AddressFamily, Any]
#: The version of IP that a host is restricted to.
IPVersion: TypeAlias = Literal[4, 6]
_FAMILIES = {None: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}

#: Maximum threads that look up names. Dead name servers keep an abandoned thread for up to 30 s (resolv.conf(5):
#: 3 servers, 2 attempts of 5 s), so 128 suffice for a caller that gives up and retries four times a second.
_LOOK_UPS = 128

_look_up_limiter: RunVar[CapacityLimiter] = RunVar("anyecho.net.resolve.look_up_limiter")

#: Errors that concern this machine only: it has no such address, family or route.
_LOCAL_ERRORS = frozenset(
    {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENETUNREACH, errno.ENETDOWN}
)
#: Errors that mean that the peer did not answer.
_NO_ANSWER_ERRORS = frozenset({errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ETIMEDOUT})


async def resolve(host: str, port: int, *, version: IPVersion | None = None) -> list[Endpoint]:
    """Return the stream endpoints of `host` without duplicates, in the order of preference of RFC 6724.

    Raises `socket.gaierror`, and `NoThreadError` if no thread can be started for the look-up.
    A link-local address without its interface raises `socket.gaierror` too: connect(2) and bind(2) would fail with
    a mere "Invalid argument".

    `localhost` and `localhost.` mean both loopback addresses (RFC 6761), regardless of the hosts file. IPv4-mapped
    addresses become IPv4. Other names are looked up in a thread, which is abandoned when the call is cancelled.
    """
    family = _FAMILIES[version]
    if host_name(host).lower() == "localhost":
        loopback: list[Endpoint] = [
            (socket.AF_INET6, ("::1", port, 0, 0)),
            (socket.AF_INET, ("127.0.0.1", port)),
        ]
        return [endpoint for endpoint in loopback if family in (socket.AF_UNSPEC, endpoint[0])]

    with suppress(ValueError):  # a name, or IPv4
        if "%" not in host and IPv6Address(host).is_link_local:
            reason = f"{host} is link-local: write its interface too, like [{host}%25eth0]"
            raise socket.gaierror(socket.EAI_NONAME, reason)

    look_up = partial(socket.getaddrinfo, unmapped(host), port, family, socket.SOCK_STREAM)
    try:
        found = look_up(flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await run_in_thread(look_up, limiter=look_up_limiter())
    except UnicodeError:  # from the IDNA codec
        reason = "a part of it between dots is empty or longer than 63 bytes"
        raise socket.gaierror(socket.EAI_NONAME, reason) from None

    plain = dict.fromkeys(_unmapped_endpoint(kind, sockaddr) for kind, _, _, _, sockaddr in found)
    if endpoints := [endpoint for endpoint in plain if family in (socket.AF_UNSPEC, endpoint[0])]:
        return endpoints

    raise socket.gaierror(socket.EAI_NONAME, "it has no address of this family")


def look_up_limiter() -> CapacityLimiter:
    """Return the limiter of name look-ups in this event loop.

    On trio, an abandoned thread keeps its token until getaddrinfo(3) returns. With anyio's default limiter, 40
    stuck look-ups stop every other use of threads in the process. On asyncio the token comes back at once.
    """
    if (limiter := _look_up_limiter.get(None)) is None:
        limiter = CapacityLimiter(_LOOK_UPS)
        _look_up_limiter.set(limiter)

    return limiter


def _unmapped_endpoint(family: socket.AddressFamily, sockaddr: Any) -> Endpoint:
    # Listeners set IPV6_V6ONLY; such a socket cannot be bound to a mapped address.
    if family == socket.AF_INET6 and (host := unmapped(sockaddr[0])) != sockaddr[0]:
        return socket.AF_INET, (host, sockaddr[1])

    return family, sockaddr


def most_telling(failures: Sequence[OSError]) -> OSError:
    """Return the first failure of the kind that says most about the peer.

    A refusal says more than a time-out, and a time-out more than an error of this machine. On a machine without
    IPv6, ``localhost`` with no server is "Connection refused" and not "Cannot assign requested address".
    """
    return min(failures, key=lambda each: (each.errno in _LOCAL_ERRORS, each.errno in _NO_ANSWER_ERRORS))


@contextmanager
def connect_errors(address: Address) -> Iterator[None]:
    """Raise the errors of a look-up and of a connection attempt in the block as `ConnectError`."""
    try:
        yield
    except socket.gaierror as exc:
        raise ConnectError(f"cannot connect to {address}: no such host ({exc.strerror})") from exc
    except (OSError, UnicodeError) as exc:
        raise ConnectError(f"cannot connect to {address}: {getattr(exc, 'strerror', exc)}") from exc
