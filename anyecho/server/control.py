"""The control API: toxiproxy's HTTP API on the proxies of a running server.

Routes, status codes, bodies and texts of errors are those of toxiproxy 2.12, so that its clients work unchanged.
"""

from __future__ import annotations

__all__ = ("DEFAULT_CONTROL", "Control", "open_control")

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeAlias

from anyio import Lock

from anyecho.address import Address
from anyecho.errors import AnyechoError, quoted
from anyecho.net.http import Request, Response
from anyecho.server.control_body import RequestFailed, decode, error_response, explain, flag, require_fields, text
from anyecho.server.http_listener import open_http, parse_http_address, url_of
from anyecho.server.proxies import Proxies, Proxy
from anyecho.server.server import Server
from anyecho.server.toxics import Toxic, make_toxic, update_toxic

logger = logging.getLogger("anyecho.server")

#: Where toxiproxy listens.
DEFAULT_CONTROL = "localhost:8474"
#: The version of toxiproxy that clients may ask for.
_VERSION = b'{"version": "2.12.0"}\n'

_Action: TypeAlias = Callable[..., Awaitable[Response]]


@asynccontextmanager
async def open_control(server: Server, address: str | Address = DEFAULT_CONTROL) -> AsyncIterator[Control]:
    """Let clients of toxiproxy change `server` by HTTP requests to `address`, inside the block.

    Each stream address of the server is a proxy, with the upstream ``echo`` and its bound address as its name.
    Clients add toxics, which are faults, disable proxies and add further ones, which forward to an upstream. From
    now on each connection has a task. A port alone is a port of localhost; there is no authentication.

    Raises:
        AddressError: `address` is not an address.
        UsageError: `address` is not plain TCP or a Unix socket; every address of `server` is for datagrams, or its
            `engine` is ``events``.
        BindError: listening on `address` fails.
        StartError: no descriptor is left for epoll.
    """
    proxies = Proxies(server._listening, server._admission, server.options, server.seed)
    control = Control(proxies)
    async with open_http(parse_http_address(address, "control"), control.handle, purpose="control") as http:
        control.addresses = http.addresses
        yield control


class Control:
    """The control API of a server, as `open_control` yields it.

    * `addresses`: the bound addresses, one for each socket.
    * `url`: the URL of the first one; for a Unix socket, its address.
    """

    def __init__(self, proxies: Proxies) -> None:
        self.addresses: tuple[Address, ...] = ()
        self._proxies = proxies
        self._seed_is_logged = False
        #: Held by a request that changes something: opening a listener takes time.
        self._lock = Lock()
        self._routes: dict[tuple[str | None, ...], dict[str, _Action]] = {
            ("version",): {"GET": self._version},
            ("reset",): {"POST": self._reset},
            ("populate",): {"POST": self._populate},
            ("proxies",): {"GET": self._list_proxies, "POST": self._create_proxy},
            ("proxies", None): {
                "GET": self._show_proxy,
                "POST": self._update_proxy,
                "PATCH": self._update_proxy,
                "DELETE": self._delete_proxy,
            },
            ("proxies", None, "toxics"): {"GET": self._list_toxics, "POST": self._create_toxic},
            ("proxies", None, "toxics", None): {
                "GET": self._show_toxic,
                "POST": self._update_toxic,
                "PATCH": self._update_toxic,
                "DELETE": self._delete_toxic,
            },
        }

    @property
    def url(self) -> str:
        return url_of(self.addresses[0])

    async def handle(self, request: Request) -> Response:
        """Answer a request."""
        response = await self._answer(request)
        headers = {**response.headers, "X-Toxiproxy-Request-Id": secrets.token_hex(10)}
        return replace(response, headers=headers)

    async def _answer(self, request: Request) -> Response:
        segments = request.segments
        for pattern, actions in self._routes.items():
            if len(pattern) == len(segments) and all(
                expected in (None, segment) for expected, segment in zip(pattern, segments, strict=True)
            ):
                if request.method not in actions:
                    return Response(status=405, headers={"Allow": ", ".join(actions)})

                names = [segment for expected, segment in zip(pattern, segments, strict=True) if expected is None]
                return await self._act(actions[request.method], request, names)

        return Response(status=404, body=b"404 page not found\n")

    async def _act(self, action: _Action, request: Request, names: list[str]) -> Response:
        try:
            async with self._lock:
                return await action(request, *names)
        except AnyechoError as exc:
            return error_response(exc)

    async def _version(self, request: Request) -> Response:
        return Response(body=_VERSION, content_type="application/json;charset=utf-8")

    async def _reset(self, request: Request) -> Response:
        await self._proxies.reset()
        logger.info("control: all proxies are enabled, without toxics")
        return Response(status=204)

    async def _populate(self, request: Request) -> Response:
        done: list[dict[str, Any]] | None = None
        try:
            given = decode(request.body, list)
            wanted = [require_fields(each, f" at proxy {number}") for number, each in enumerate(given, start=1)]
            done = []
            for proxy in wanted:
                done.append(_shown(await self._replace_proxy(proxy)))
        except AnyechoError as exc:
            message, status = explain(exc)
            return Response.json({"error": message, "status": status, "proxies": done or None}, status)

        return Response.json({"proxies": done}, 201)

    async def _replace_proxy(self, given: Mapping[str, Any]) -> Proxy:
        """Create a proxy, or replace one that listens elsewhere or has another upstream."""
        existing = self._proxies.by_name.get(given["name"])
        if existing is not None:
            if existing.is_at(text(given, "listen")) and existing.upstream == given["upstream"]:
                return existing
            self._proxies.delete(existing)

        return await self._create(given)

    async def _list_proxies(self, request: Request) -> Response:
        return Response.json({name: _shown(proxy) for name, proxy in self._proxies.by_name.items()})

    async def _create_proxy(self, request: Request) -> Response:
        given = require_fields(decode(request.body, dict))
        if given["name"] in self._proxies.by_name:
            raise RequestFailed("proxy already exists", 409)

        return Response.json(_shown(await self._create(given)), 201)

    async def _create(self, given: Mapping[str, Any]) -> Proxy:
        enabled = flag(given, "enabled", default=True)
        return await self._proxies.create(given["name"], text(given, "listen"), given["upstream"], enabled=enabled)

    async def _show_proxy(self, request: Request, name: str) -> Response:
        return Response.json(_shown(self._proxy(name)))

    async def _update_proxy(self, request: Request, name: str) -> Response:
        proxy = self._proxy(name)
        given = decode(request.body, dict)
        await self._proxies.update(
            proxy,
            listen=text(given, "listen", proxy.listen),
            upstream=text(given, "upstream", proxy.upstream),
            enabled=flag(given, "enabled", default=proxy.enabled),
        )
        return Response.json(_shown(proxy))

    async def _delete_proxy(self, request: Request, name: str) -> Response:
        self._proxies.delete(self._proxy(name))
        return Response(status=204)

    async def _list_toxics(self, request: Request, name: str) -> Response:
        return Response.json([toxic.to_json() for toxic in self._proxy(name).sorted_toxics()])

    async def _create_toxic(self, request: Request, name: str) -> Response:
        proxy = self._proxy(name)
        toxic = make_toxic(decode(request.body, dict))
        if proxy.toxic(toxic.name) is not None:
            raise RequestFailed("toxic already exists", 409)

        self._set_toxics(proxy, [*proxy.toxics, toxic])
        return Response.json(toxic.to_json())

    async def _show_toxic(self, request: Request, name: str, toxic: str) -> Response:
        return Response.json(_toxic(self._proxy(name), toxic).to_json())

    async def _update_toxic(self, request: Request, name: str, toxic: str) -> Response:
        proxy = self._proxy(name)
        before = _toxic(proxy, toxic)
        after = update_toxic(before, decode(request.body, dict))
        self._set_toxics(proxy, [after if each is before else each for each in proxy.toxics])
        return Response.json(after.to_json())

    async def _delete_toxic(self, request: Request, name: str, toxic: str) -> Response:
        proxy = self._proxy(name)
        removed = _toxic(proxy, toxic)
        self._set_toxics(proxy, [each for each in proxy.toxics if each is not removed])
        return Response(status=204)

    def _set_toxics(self, proxy: Proxy, toxics: list[Toxic]) -> None:
        self._proxies.set_toxics(proxy, toxics)
        names = ", ".join(quoted(each.name) for each in toxics)
        logger.info("control: toxics of %s: %s", quoted(proxy.name), names or "none")
        if toxics and not self._seed_is_logged:
            logger.warning("this server misbehaves on purpose: %s, seed %d", names, self._proxies.seed)
            self._seed_is_logged = True

    def _proxy(self, name: str) -> Proxy:
        if name not in self._proxies.by_name:
            raise RequestFailed("proxy not found", 404)

        return self._proxies.by_name[name]


def _toxic(proxy: Proxy, name: str) -> Toxic:
    toxic = proxy.toxic(name)
    if toxic is None:
        raise RequestFailed("toxic not found", 404)

    return toxic


def _shown(proxy: Proxy) -> dict[str, Any]:
    """Return the JSON of a proxy. A further key would break toxiproxy-python."""
    return {
        "name": proxy.name,
        "listen": proxy.listen,
        "upstream": proxy.upstream,
        "enabled": proxy.enabled,
        "toxics": [toxic.to_json() for toxic in proxy.sorted_toxics()],
    }
