"""What is asked about a running server over HTTP: metrics, health, readiness, counters, peers.

A source answers: the monitor of a server, or a supervisor for its workers.
"""

from __future__ import annotations

__all__ = ("Admin", "AdminSource", "open_admin")

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Protocol, TypeAlias

from anyecho._version import __version__
from anyecho.address import Address
from anyecho.codec import encode
from anyecho.net.http import Request, Response
from anyecho.server.http_listener import RequestChecks, open_http, parse_http_address
from anyecho.server.stats import Peer
from anyecho.server.totals import Totals

logger = logging.getLogger("anyecho.server")

#: Paths of health checks, which an orchestrator may ask for under any host name.
_CHECKS = frozenset({"/healthz", "/readyz"})
_WITHOUT_METRICS = "/metrics needs prometheus-client: pip install 'anyecho[metrics]'"

Route: TypeAlias = Callable[[Request], Awaitable[Response]]


class AdminSource(Protocol):
    """What the pages are about: a `Monitor` is one."""

    def ready(self) -> bool:
        """Whether new connections are accepted."""

    async def totals(self) -> Totals:
        """Return what was counted until now."""

    def peers(self) -> AsyncIterator[Sequence[Peer]]:
        """Yield all peers in slices, between which other tasks run."""


@asynccontextmanager
async def open_admin(source: AdminSource, address: str | Address) -> AsyncIterator[Admin]:
    """Answer HTTP requests to `address` about `source`, which is ``server.monitor()``, inside the block.

    There are /metrics (with the extra ``metrics``), /healthz, /readyz, /stats and /peers. A port alone is a port of
    localhost; there is no authentication.

    Raises:
        AddressError: `address` is not an address.
        UsageError: `address` is not plain TCP or a Unix socket.
        BindError: listening on `address` fails.
        StartError: no descriptor is left for epoll.
    """
    # A person may read the pages too. A page of another site cannot: its Host field is refused.
    checks = RequestChecks(browsers=True, any_host=_CHECKS)
    admin = Admin(source)
    parsed = parse_http_address(address, "admin")
    async with open_http(parsed, admin.handle, purpose="admin", checks=checks) as http:
        admin.addresses = http.addresses
        yield admin


class Admin:
    """The pages of a server, as `open_admin` yields them.

    * `addresses`: the bound addresses, one for each socket.
    """

    def __init__(self, source: AdminSource) -> None:
        self.addresses: tuple[Address, ...] = ()
        self._source = source
        self._render = _import_render()
        self._routes: Mapping[str, Route] = {
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/stats": self._stats,
            "/peers": self._peers,
        }

    async def handle(self, request: Request) -> Response:
        route = self._routes.get(request.path)
        if route is None:
            body = f"no such page; there are {' '.join(self._routes)}\n".encode()
            return Response(status=HTTPStatus.NOT_FOUND, body=body)
        if request.method != "GET":
            return Response(status=HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "GET, HEAD"})

        return await route(request)

    async def _metrics(self, request: Request) -> Response:
        if self._render is None:
            return Response(status=HTTPStatus.NOT_IMPLEMENTED, body=f"{_WITHOUT_METRICS}\n".encode())

        totals = await self._source.totals()
        accept = request.headers.get("accept", "")
        body, content_type = self._render(totals, ready=self._source.ready(), accept=accept)
        return Response(body=body, content_type=content_type)

    async def _healthz(self, request: Request) -> Response:
        return Response(body=b"ok\n")

    async def _readyz(self, request: Request) -> Response:
        if self._source.ready():
            return Response(body=b"ready\n")

        return Response(status=HTTPStatus.SERVICE_UNAVAILABLE, body=b"not accepting connections\n")

    async def _stats(self, request: Request) -> Response:
        totals = await self._source.totals()
        return Response.json({"version": __version__, "ready": self._source.ready(), **totals.to_json()})

    async def _peers(self, request: Request) -> Response:
        lines = []
        async for peers in self._source.peers():
            lines += [json.dumps(encode(peer)) for peer in peers]

        return Response(body=b"[%b]\n" % ",\n".join(lines).encode(), content_type="application/json")


def _import_render() -> Callable[..., tuple[bytes, str]] | None:
    """Import `render` before the first scrape, because it takes 0.1 s; return None without the extra."""
    try:
        from anyecho.server.metrics import render
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "prometheus_client":
            raise
        logger.warning(_WITHOUT_METRICS)
        return None

    return render
