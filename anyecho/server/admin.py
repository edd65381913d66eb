"""What is asked about a running server over HTTP: metrics, health, readiness, counters, peers.

A source answers: the monitor of a server, or a supervisor for its workers.
"""

from __future__ import annotations

__all__ = ("Admin", "Source", "open_admin")

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
from anyecho.server.http_listener import HTTPListener, RequestChecks, open_http
from anyecho.server.stats import Peer
from anyecho.server.totals import Totals

logger = logging.getLogger("anyecho.server")

#: Paths of health checks, which an orchestrator may ask for under any host name.
_CHECKS = frozenset({"/healthz", "/readyz"})
_WITHOUT_METRICS = "/metrics needs prometheus-client: pip install 'anyecho[metrics]'"

Route: TypeAlias = Callable[[Request], Awaitable[Response]]


class Source(Protocol):
    """What is served."""

    def ready(self) -> bool:
        """Whether new connections are accepted."""

    async def totals(self) -> Totals: ...

    def peers(self) -> AsyncIterator[Sequence[Peer]]:
        """Yield all peers in slices, between which other tasks run."""


@asynccontextmanager
async def open_admin(address: Address, source: Source) -> AsyncIterator[HTTPListener]:
    """Answer requests about `source` on `address` inside the block. Raises `BindError`."""
    # Readers of the pages are persons too. A page of another site cannot read them: its Host field is refused.
    checks = RequestChecks(browsers=True, any_host=_CHECKS)
    async with open_http(address, Admin(source).handle, purpose="admin", checks=checks) as listener:
        yield listener


class Admin:
    """The routes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._render = _import_render()
        self.routes: Mapping[str, Route] = {
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/stats": self._stats,
            "/peers": self._peers,
        }

    async def handle(self, request: Request) -> Response:
        route = self.routes.get(request.path)
        if route is None:
            body = f"no such page; there are {' '.join(self.routes)}\n".encode()
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
