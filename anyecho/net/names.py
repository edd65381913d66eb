"""From host names to endpoints.

It opens no socket. Name look-ups run in threads of their own limit.
"""

from __future__ import annotations

__all__ = ("Endpoint", "resolve")

import socket
from functools import partial
from typing import Any, TypeAlias

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

#: (family, socket address), ready for bind(2) or connect(2).
Endpoint: TypeAlias = tuple[socket.AddressFamily, Any]

#: Threads that look up names. A dead name server holds an abandoned one for up to 30 s (resolv.conf(5): 3 servers,
#: 2 attempts of 5 s), so a caller that gives up and tries again four times a second is still served.
_LOOK_UPS = 128

_look_up_limiter: RunVar[CapacityLimiter] = RunVar("anyecho.net.names.look_up_limiter")


async def resolve(host: str, port: int, *, family: int = socket.AF_UNSPEC) -> list[Endpoint]:
    """Return the stream endpoints of `host`, best first (RFC 6724), without doubles. Raises `socket.gaierror`.

    `localhost` is both loopback addresses (RFC 6761), whatever the hosts file says. Any other name is
    looked up in a thread that is abandoned when the call is cancelled.
    """
    if host == "localhost":
        loopback: list[Endpoint] = [
            (socket.AF_INET6, ("::1", port, 0, 0)),
            (socket.AF_INET, ("127.0.0.1", port)),
        ]
        return [endpoint for endpoint in loopback if family in (socket.AF_UNSPEC, endpoint[0])]

    look_up = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
    try:
        found = look_up(flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await to_thread.run_sync(look_up, abandon_on_cancel=True, limiter=look_up_limiter())

    return list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))


def look_up_limiter() -> CapacityLimiter:
    """Return the limiter of name look-ups in this event loop.

    On trio, an abandoned thread keeps its token until getaddrinfo(3) returns. With anyio's default limiter, 40 dead
    look-ups stop every other use of threads in the process. On asyncio the token comes back at once.
    """
    try:
        return _look_up_limiter.get()
    except LookupError:
        limiter = CapacityLimiter(_LOOK_UPS)
        _look_up_limiter.set(limiter)
        return limiter
