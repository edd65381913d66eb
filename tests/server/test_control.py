"""The control API: routes, answers and errors of toxiproxy, and what they change on a running server."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

import anyecho
from anyecho.errors import UsageError
from anyecho.faults import Latency, LimitData
from anyecho.handlers import upper
from anyecho.net.http import Request
from anyecho.server.control import Control, open_control
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.support.machine import needs_epoll
from tests.support.peers import dial, exchange, receive, receive_all, until

TCP = "tcp://127.0.0.1:0"


@pytest.fixture(autouse=True)
def engine() -> None:
    """The real default: the events engine has no faults."""


@dataclass
class API:
    """The control API of a server, without its listener."""

    server: Server
    control: Control

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return the status and the JSON of the answer. A body that is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        answer = await self.control.handle(Request(method=method, path=path, body=data))
        assert len(answer.headers["X-Toxiproxy-Request-Id"]) == 20
        return answer.status, json.loads(answer.body) if answer.body.startswith((b"{", b"[")) else answer.body

    async def create(self, **given: Any) -> dict[str, Any]:
        status, proxy = await self.ask(
            "POST", "/proxies", {"name": "p", "upstream": "echo", "listen": "127.0.0.1:0", **given}
        )
        assert status == 201
        assert isinstance(proxy, dict)
        return proxy


@pytest.fixture
async def api() -> AsyncIterator[API]:
    async with open_server(TCP) as server, open_control(server, "127.0.0.1:0") as control:
        yield API(server, control)


def echoes(listen: str) -> bool:
    with dial(listen) as sock:
        return exchange(sock, b"hello") == b"hello"


def refuses(listen: str) -> bool:
    try:
        dial(listen).close()
    except ConnectionRefusedError:
        return True

    return False


async def test_each_stream_address_is_a_proxy_from_the_start(short_path: Path) -> None:
    addresses = (TCP, f"unix:{short_path}/echo", "udp://127.0.0.1:0", "localhost:0")
    async with open_server(*addresses) as server, open_control(server, "127.0.0.1:0") as control:
        _, proxies = await API(server, control).ask("GET", "/proxies")

    tcp, unix, _, localhost, *_ = server.addresses
    expected = [str(address).removeprefix("tcp://") for address in (tcp, unix, localhost)]
    assert proxies == {
        name: {"name": name, "listen": name, "upstream": "echo", "enabled": True, "toxics": []} for name in expected
    }


async def test_the_seed_is_logged_with_the_first_toxic(caplog: pytest.LogCaptureFixture) -> None:
    options = ServeOptions(seed=7)
    async with open_server(TCP, options=options) as server, open_control(server, "127.0.0.1:0") as control:
        api = API(server, control)
        await api.create()
        for kind in ("latency", "timeout"):
            await api.ask("POST", "/proxies/p/toxics", {"type": kind})

    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert warnings == ["this server misbehaves on purpose: 'latency_downstream', seed 7"]


async def test_the_version_is_that_of_toxiproxy(api: API) -> None:
    assert await api.ask("GET", "/version") == (200, {"version": "2.12.0"})


@pytest.mark.parametrize("path", ["/", "/proxy", "/proxies/", "/proxies/p/toxics/t/x", "//proxies", "/metrics"])
async def test_an_unknown_path_is_not_found(api: API, path: str) -> None:
    status, text = await api.ask("GET", path)

    # An empty name is one that no proxy has.
    assert (status, text) == (404, b"404 page not found\n") or text["error"] == "proxy not found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/reset", "POST"),
        ("DELETE", "/proxies", "GET, POST"),
        ("PUT", "/proxies/p", "GET, POST, PATCH, DELETE"),
        ("PATCH", "/proxies/p/toxics", "GET, POST"),
        ("PUT", "/proxies/p/toxics/t", "GET, POST, PATCH, DELETE"),
    ],
)
async def test_another_method_of_a_known_path_is_not_allowed(
    api: API, method: str, path: str, allowed: str
) -> None:
    answer = await api.control.handle(Request(method=method, path=path))

    assert (answer.status, answer.body, answer.headers["Allow"]) == (405, b"", allowed)


async def test_errors_are_sent_as_toxiproxy_sends_them(api: API) -> None:
    answer = await api.control.handle(Request(method="GET", path="/proxies/x"))

    assert answer.body == b'{"error": "proxy not found", "status": 404}\n'
    assert answer.content_type == "text/plain; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


PROXY = {"name": "q", "upstream": "echo"}


@pytest.mark.by_turns("anyio_backend")
@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("POST", "/proxies", b"", 400, "bad request body: EOF"),
        ("POST", "/proxies", b" \n", 400, "bad request body: EOF"),
        ("POST", "/proxies", b"{", 400, "bad request body: no JSON: "),
        ("POST", "/proxies", b"\xff", 400, "bad request body: no JSON: "),
        ("POST", "/proxies", b"[" * 100_000, 400, "bad request body: no JSON: "),
        ("POST", "/proxies", b'{"name": NaN}', 400, "bad request body: no JSON: NaN is no number"),
        ("POST", "/proxies", b'{"name": "\xed\xa0\x80"}', 400, "bad request body: a text has a lone surrogate"),
        ("POST", "/proxies", {**PROXY, "name": "\ud800"}, 400, "bad request body: a text has a lone surrogate"),
        ("POST", "/proxies", {**PROXY, "a\udfff": 1}, 400, "bad request body: a text has a lone surrogate"),
        ("POST", "/populate", [{**PROXY, "name": "\ude00\ud83d"}], 400, "bad request body: a text has a lone"),
        ("POST", "/proxies", [], 400, "bad request body: not an object"),
        ("POST", "/proxies", b"null", 400, "missing required field: name"),
        ("POST", "/proxies", {"upstream": "echo"}, 400, "missing required field: name"),
        ("POST", "/proxies", {"name": "q"}, 400, "missing required field: upstream"),
        ("POST", "/proxies", {**PROXY, "name": 7}, 400, "bad request body: name must be a string"),
        ("POST", "/proxies", {**PROXY, "enabled": 1}, 400, "bad request body: enabled must be true or false"),
        ("POST", "/proxies", {**PROXY, "name": "p"}, 409, "proxy already exists"),
        ("POST", "/proxies", {**PROXY, "listen": "nonsense"}, 400, "bad request body: bad address 'nonsense': "),
        ("POST", "/proxies", {**PROXY, "upstream": "x"}, 400, "bad request body: bad address 'x': "),
        ("POST", "/proxies", {**PROXY, "upstream": "udp://x:1"}, 400, "bad request body: cannot forward to "),
        (
            "POST",
            "/proxies",
            {**PROXY, "listen": "udp://:0"},
            400,
            "bad request body: a proxy listens on a TCP or Unix address, not on udp://:0",
        ),
        (
            "POST",
            "/proxies",
            {**PROXY, "listen": "tls://:0"},
            400,
            "bad request body: no certificate for tls://:0: the server has no address over TLS",
        ),
        (
            "POST",
            "/proxies",
            {**PROXY, "listen": ":0?proxy=v2"},
            400,
            "bad request body: no proxy is trusted to send a PROXY header to tcp://:0?proxy=v2",
        ),
        ("POST", "/proxies", {**PROXY, "listen": "192.0.2.1:1"}, 500, "cannot listen on tcp://192.0.2.1:1: "),
        ("POST", "/populate", b"", 400, "bad request body: EOF"),
        ("POST", "/populate", {}, 400, "bad request body: not an array"),
        ("POST", "/populate", [PROXY, 7], 400, "bad request body: not an object"),
        ("POST", "/populate", [PROXY, {}], 400, "missing required field: name at proxy 2"),
        ("POST", "/populate", [PROXY, {"name": "r"}], 400, "missing required field: upstream at proxy 2"),
        ("GET", "/proxies/x", None, 404, "proxy not found"),
        ("POST", "/proxies/x", {}, 404, "proxy not found"),
        ("POST", "/proxies/p", b"", 400, "bad request body: EOF"),
        ("POST", "/proxies/p", {"listen": 7}, 400, "bad request body: listen must be a string"),
        ("POST", "/proxies/p", {"listen": "nonsense"}, 400, "bad request body: bad address 'nonsense': "),
        ("DELETE", "/proxies/x", None, 404, "proxy not found"),
        ("GET", "/proxies/x/toxics", None, 404, "proxy not found"),
        ("POST", "/proxies/x/toxics", {}, 404, "proxy not found"),
        ("POST", "/proxies/p/toxics", b"", 400, "bad request body: EOF"),
        ("POST", "/proxies/p/toxics", {"type": "rain"}, 400, "invalid toxic type"),
        ("POST", "/proxies/p/toxics", {"type": "cut"}, 400, "bad request body: cut: give bytes or timeout"),
        ("POST", "/proxies/p/toxics", {"type": "noop", "name": "t"}, 409, "toxic already exists"),
        ("GET", "/proxies/p/toxics/x", None, 404, "toxic not found"),
        ("GET", "/proxies/x/toxics/t", None, 404, "proxy not found"),
        ("PATCH", "/proxies/p/toxics/x", {}, 404, "toxic not found"),
        ("PATCH", "/proxies/p/toxics/t", {"attributes": {"rate": 1.5}}, 400, "bad request body: rate must be a"),
        ("DELETE", "/proxies/p/toxics/x", None, 404, "toxic not found"),
    ],
)
async def test_a_wrong_request_has_an_error_and_changes_nothing(
    api: API, method: str, path: str, body: Any, status: int, text: str
) -> None:
    await api.create()
    await api.ask("POST", "/proxies/p/toxics", {"type": "bandwidth", "name": "t", "attributes": {"rate": 7}})
    before = await api.ask("GET", "/proxies")

    answer = await api.ask(method, path, body)

    assert answer[0] == answer[1]["status"] == status
    assert answer[1]["error"].startswith(text)
    assert ("proxies" in answer[1]) == (path == "/populate")
    assert await api.ask("GET", "/proxies") == before


async def test_a_created_proxy_echoes_until_it_is_deleted(api: API) -> None:
    proxy = await api.create(name="a/b", toxics=None)
    assert proxy == {**proxy, "name": "a/b", "upstream": "echo", "enabled": True, "toxics": []}
    assert await to_thread.run_sync(echoes, proxy["listen"])

    assert await api.ask("GET", "/proxies/a%2Fb") == (200, proxy)
    assert await api.ask("DELETE", "/proxies/a%2Fb") == (204, b"")
    assert await to_thread.run_sync(refuses, proxy["listen"])
    assert await api.ask("GET", "/proxies/a%2Fb") == (404, {"error": "proxy not found", "status": 404})


async def test_a_proxy_without_an_address_listens_on_every_interface(api: API) -> None:
    proxy = await api.create(listen="")

    host, _, port = proxy["listen"].rpartition(":")
    assert host == "0.0.0.0"
    assert await to_thread.run_sync(echoes, f"127.0.0.1:{port}")


async def test_a_proxy_is_disabled_with_its_connections_and_enabled_on_the_same_port(
    api: API, opened: ExitStack
) -> None:
    [name] = (await api.ask("GET", "/proxies"))[1]
    other = await api.create()
    connected, spared = (opened.enter_context(dial(listen)) for listen in (name, other["listen"]))
    for sock in (connected, spared):
        assert await to_thread.run_sync(exchange, sock, b"hello") == b"hello"

    status, proxy = await api.ask("POST", f"/proxies/{name}", {"enabled": False})

    assert (status, proxy["enabled"], proxy["listen"]) == (200, False, name)
    assert await to_thread.run_sync(receive_all, connected) == b""
    assert await to_thread.run_sync(refuses, name)
    assert await to_thread.run_sync(exchange, spared, b"hello") == b"hello"
    await until(lambda: api.server.stats.closed == {"control": 1})

    status, proxy = await api.ask("PATCH", f"/proxies/{name}", {"enabled": True})
    assert (status, proxy["enabled"], proxy["listen"]) == (200, True, name)
    assert await to_thread.run_sync(echoes, name)


async def test_a_disabled_proxy_ends_a_connection_that_is_older_than_the_control(opened: ExitStack) -> None:
    async with open_server(TCP) as server:
        sock = opened.enter_context(dial(server.address))
        assert await to_thread.run_sync(exchange, sock, b"hello") == b"hello"
        async with open_control(server, "127.0.0.1:0") as control:
            api = API(server, control)
            [name] = (await api.ask("GET", "/proxies"))[1]
            await api.ask("POST", f"/proxies/{name}", {"enabled": False})

            assert await to_thread.run_sync(receive_all, sock) == b""
            await until(lambda: server.stats.closed == {"control": 1})


async def test_a_proxy_created_disabled_listens_once_it_is_enabled(api: API) -> None:
    proxy = await api.create(enabled=False)
    assert (proxy["enabled"], proxy["listen"]) == (False, "127.0.0.1:0")

    _, proxy = await api.ask("POST", "/proxies/p", {**proxy, "enabled": True, "toxics": None, "name": "x"})
    assert (proxy["name"], proxy["enabled"]) == ("p", True)
    assert await to_thread.run_sync(echoes, proxy["listen"])


@pytest.mark.parametrize("path", ["/proxies", "/populate"])
@pytest.mark.parametrize("enabled", [True, False])
async def test_a_proxy_that_would_forward_to_itself_is_refused(api: API, path: str, enabled: bool) -> None:
    listen = f"127.0.0.1:{api.server.port}"
    wanted = {**PROXY, "listen": listen, "upstream": f"localhost:{api.server.port}", "enabled": enabled}
    status, error = await api.ask("POST", path, [wanted] if path == "/populate" else wanted)

    assert (status, error["error"]) == (
        400,
        f"bad request body: cannot forward to tcp://{wanted['upstream']}: this server listens there itself",
    )
    assert "q" not in (await api.ask("GET", "/proxies"))[1]


async def test_a_proxy_gets_no_upstream_that_is_itself(api: API) -> None:
    proxy = await api.create()
    status, _ = await api.ask("POST", "/proxies/p", {"upstream": proxy["listen"]})

    assert status == 400
    assert await api.ask("GET", "/proxies/p") == (200, proxy)


async def test_a_proxy_forwards_to_its_upstream_and_may_get_another(api: API, opened: ExitStack) -> None:
    async with open_server(TCP, handler=upper) as shouting:
        upstream = str(shouting.address).removeprefix("tcp://")
        proxy = await api.create(upstream=upstream)
        assert proxy["upstream"] == upstream
        sock = opened.enter_context(dial(proxy["listen"]))
        assert await to_thread.run_sync(exchange, sock, b"hello") == b"HELLO"

        _, changed = await api.ask("POST", "/proxies/p", {"upstream": "echo"})
        assert changed == {**proxy, "upstream": "echo"}
        assert await to_thread.run_sync(receive_all, sock) == b""
        assert await to_thread.run_sync(echoes, proxy["listen"])


async def test_a_moved_proxy_listens_on_the_new_address_only(api: API, short_path: Path) -> None:
    before = await api.create()
    _, after = await api.ask("POST", "/proxies/p", {"listen": f"unix:{short_path}/echo"})

    assert after == {**before, "listen": f"unix:{short_path}/echo"}
    assert await to_thread.run_sync(refuses, before["listen"])
    assert await to_thread.run_sync(echoes, after["listen"])


async def test_a_proxy_that_cannot_be_moved_is_disabled_until_the_reset(api: API, opened: ExitStack) -> None:
    taken = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    listen = f"127.0.0.1:{taken.getsockname()[1]}"
    before = await api.create()

    status, error = await api.ask("POST", "/proxies/p", {"listen": listen, "upstream": before["listen"]})

    assert (status, error["error"]) == (500, f"cannot listen on tcp://{listen}: it is in use already")
    assert await api.ask("GET", "/proxies/p") == (200, {**before, "enabled": False})
    assert await api.ask("POST", "/reset") == (204, b"")
    assert await api.ask("GET", "/proxies/p") == (200, before)
    assert await to_thread.run_sync(echoes, before["listen"])


async def test_a_reset_that_cannot_enable_a_proxy_removes_all_toxics(api: API, opened: ExitStack) -> None:
    taken = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    await api.create(name="off", enabled=False, listen=f"127.0.0.1:{taken.getsockname()[1]}")
    await api.create()
    await api.ask("POST", "/proxies/p/toxics", {"type": "timeout"})

    assert (await api.ask("POST", "/reset"))[0] == 500
    assert await api.ask("GET", "/proxies/p/toxics") == (200, [])


async def test_populate_creates_keeps_and_replaces_proxies(api: API) -> None:
    kept, replaced = await api.create(name="kept"), await api.create(name="replaced")
    await api.ask("POST", "/proxies/kept/toxics", {"type": "noop"})
    wanted = [kept, {**replaced, "listen": "127.0.0.2:0"}, {"name": "new", "upstream": "echo", "enabled": False}]

    status, answer = await api.ask("POST", "/populate", wanted)

    assert status == 201
    assert [proxy["name"] for proxy in answer["proxies"]] == ["kept", "replaced", "new"]
    first, second, third = answer["proxies"]
    assert (first["listen"], len(first["toxics"])) == (kept["listen"], 1)
    assert second["listen"] != replaced["listen"]
    assert (third["enabled"], third["listen"]) == (False, ":0")
    assert await to_thread.run_sync(refuses, replaced["listen"])


@pytest.mark.parametrize("host", ["localhost", "", "127.0.0.1"])
async def test_a_proxy_is_kept_by_the_address_that_was_asked_for(api: API, host: str, opened: ExitStack) -> None:
    proxy = await api.create(listen=f"{host}:0")
    port = proxy["listen"].rpartition(":")[2]
    sock = opened.enter_context(dial(f"127.0.0.1:{port}"))
    again = {"name": "p", "upstream": "echo", "listen": f"{host}:{port}"}

    assert await api.ask("POST", "/populate", [again]) == (201, {"proxies": [proxy]})
    assert await api.ask("POST", "/proxies/p", again) == (200, proxy)
    assert await to_thread.run_sync(exchange, sock, b"hello") == b"hello"


async def test_populate_that_fails_tells_what_is_done(api: API, opened: ExitStack) -> None:
    taken = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    listen = f"127.0.0.1:{taken.getsockname()[1]}"
    wanted = [{"name": "a", "upstream": "echo", "listen": "127.0.0.1:0"}, {**PROXY, "listen": listen}]

    status, answer = await api.ask("POST", "/populate", wanted)

    assert status == answer["status"] == 500
    assert answer["error"] == f"cannot listen on tcp://{listen}: it is in use already"
    assert [proxy["name"] for proxy in answer["proxies"]] == ["a"]


async def test_toxics_are_added_listed_changed_and_removed(api: API) -> None:
    await api.create()
    path = "/proxies/p/toxics"
    latency = {"type": "latency", "attributes": {"latency": 7}}
    status, down = await api.ask("POST", path, latency)
    assert (status, down["name"]) == (200, "latency_downstream")
    _, up = await api.ask("POST", path, {**latency, "stream": "upstream"})

    assert await api.ask("GET", path) == (200, [up, down])
    assert await api.ask("GET", f"{path}/latency_upstream") == (200, up)
    assert (await api.ask("GET", "/proxies/p"))[1]["toxics"] == [up, down]

    status, changed = await api.ask("POST", f"{path}/latency_upstream", {"attributes": {"jitter": 3}})
    assert (status, changed) == (200, {**up, "attributes": {"latency": 7, "jitter": 3}})
    assert await api.ask("DELETE", f"{path}/latency_downstream") == (204, b"")
    assert await api.ask("GET", path) == (200, [changed])


async def test_toxics_act_on_the_connections_of_their_proxy_only(api: API) -> None:
    await api.create()
    [name, _] = (await api.ask("GET", "/proxies"))[1]
    await api.ask("POST", "/proxies/p/toxics", {"type": "limit_data", "attributes": {"bytes": 3}})

    _, proxy = await api.ask("GET", "/proxies/p")
    with dial(proxy["listen"]) as sock:
        sock.sendall(b"hello")
        assert await to_thread.run_sync(receive_all, sock) == b"hel"
    assert await to_thread.run_sync(echoes, name)


async def test_toxics_change_on_a_connection_that_is_open(api: API, opened: ExitStack) -> None:
    path = f"/proxies/{(await api.create())['name']}/toxics"
    _, proxy = await api.ask("GET", "/proxies/p")
    sock = opened.enter_context(dial(proxy["listen"]))
    assert await to_thread.run_sync(exchange, sock, b"at once") == b"at once"

    await api.ask("POST", path, {"type": "latency", "attributes": {"latency": 1_000_000}})
    sock.sendall(b"late")
    await until(lambda: [peer.bytes_received for peer in api.server.peers()] == [11])
    await api.ask("PATCH", f"{path}/latency_downstream", {"attributes": {"latency": 0}})
    assert await to_thread.run_sync(receive, sock, 4) == b"late"

    await api.ask("POST", path, {"type": "bandwidth", "attributes": {"rate": 0}})
    sock.sendall(b"stalled")
    await until(lambda: [peer.bytes_received for peer in api.server.peers()] == [18])
    await api.ask("DELETE", f"{path}/bandwidth_downstream")
    assert await to_thread.run_sync(receive, sock, 7) == b"stalled"

    await api.ask("POST", path, {"type": "reset_peer", "attributes": {"timeout": 0}})
    sock.sendall(b"x")
    with pytest.raises(ConnectionResetError):
        await to_thread.run_sync(receive_all, sock)
    await until(lambda: api.server.stats.closed == {"fault": 1})


async def test_a_removed_black_hole_ends_the_connection(api: API, opened: ExitStack) -> None:
    proxy = await api.create()
    sock = opened.enter_context(dial(proxy["listen"]))
    assert await to_thread.run_sync(exchange, sock, b"before") == b"before"
    await api.ask("POST", "/proxies/p/toxics", {"type": "timeout"})

    await api.ask("DELETE", "/proxies/p/toxics/timeout_downstream")

    assert await to_thread.run_sync(receive_all, sock) == b""


async def test_a_toxicity_of_0_never_acts_and_1_acts_on_open_connections(api: API, opened: ExitStack) -> None:
    proxy = await api.create()
    toxic = {"type": "limit_data", "toxicity": 0, "attributes": {"bytes": 2}}
    await api.ask("POST", "/proxies/p/toxics", toxic)
    sock = opened.enter_context(dial(proxy["listen"]))
    assert await to_thread.run_sync(exchange, sock, b"hello") == b"hello"

    await api.ask("POST", "/proxies/p/toxics/limit_data_downstream", {"toxicity": 1})
    sock.sendall(b"hello")

    assert await to_thread.run_sync(receive_all, sock) == b"he"


async def test_faults_of_the_options_stay_beside_the_toxics() -> None:
    options = ServeOptions(faults=(Latency(latency=0.01), LimitData(bytes=4)))
    async with open_server(TCP, options=options) as server, open_control(server, "127.0.0.1:0") as control:
        api = API(server, control)
        [(name, proxy)] = (await api.ask("GET", "/proxies"))[1].items()
        assert proxy["toxics"] == []
        await api.ask("POST", f"/proxies/{name}/toxics", {"type": "limit_data", "attributes": {"bytes": 9}})
        await api.ask("POST", "/reset")
        with dial(name) as sock:
            sock.sendall(b"hello")
            assert await to_thread.run_sync(receive_all, sock) == b"hell"


async def test_a_reset_enables_each_proxy_and_removes_all_toxics(api: API) -> None:
    proxy = await api.create()
    await api.ask("POST", "/proxies/p/toxics", {"type": "timeout"})
    await api.ask("POST", "/proxies/p", {"enabled": False})

    assert await api.ask("POST", "/reset", b"ignored") == (204, b"")

    assert await api.ask("GET", "/proxies/p") == (200, proxy)
    assert await to_thread.run_sync(echoes, proxy["listen"])


async def test_the_server_lives_on_while_every_proxy_is_disabled(api: API) -> None:
    [name] = (await api.ask("GET", "/proxies"))[1]
    await api.ask("POST", f"/proxies/{name}", {"enabled": False})
    await api.ask("DELETE", f"/proxies/{name}")

    proxy = await api.create()

    assert await to_thread.run_sync(echoes, proxy["listen"])


async def test_a_closed_server_gets_no_further_proxy(api: API) -> None:
    existing = await api.create()
    await api.server.drain(0)

    status, error = await api.ask("POST", "/proxies", {"name": "q", "upstream": "echo", "listen": "127.0.0.1:0"})

    assert (status, error["error"]) == (500, "cannot listen on tcp://127.0.0.1:0: the server accepts no more")
    assert await to_thread.run_sync(refuses, existing["listen"])


async def test_proxies_over_tls_present_the_certificate_of_the_server() -> None:
    options = ServeOptions(tls=anyecho.TLSServerOptions(ssl_self_signed=True))
    async with (
        open_server("tls://127.0.0.1:0", options=options) as server,
        open_control(server, "127.0.0.1:0") as control,
    ):
        [name] = (await API(server, control).ask("GET", "/proxies"))[1]
        assert name == str(server.address)
        proxy = await API(server, control).create(listen="tls://127.0.0.1:0")
        assert server.certificates is not None
        connect = anyecho.ConnectOptions(tls=anyecho.TLSClientOptions(cacert=server.certificates.cacert))
        async with await anyecho.connect(proxy["listen"], options=connect) as client:
            assert await client.exchange(b"hello") == b"hello"


async def test_a_passed_socket_stays_open_and_has_toxics(opened: ExitStack) -> None:
    passed = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    async with open_server(f"fd://{passed.fileno()}") as server, open_control(server, "127.0.0.1:0") as control:
        api = API(server, control)
        [name] = (await api.ask("GET", "/proxies"))[1]
        for method, body in (("POST", {"enabled": False}), ("POST", {"listen": ":0"}), ("DELETE", None)):
            _, error = await api.ask(method, f"/proxies/{name}", body)
            text = f"bad request body: {name} listens on a passed socket, which only its owner can close"
            assert error == {"error": text, "status": 400}
        assert await to_thread.run_sync(echoes, name)

        await api.ask("POST", f"/proxies/{name}/toxics", {"type": "limit_data"})
        with dial(name) as sock:
            sock.sendall(b"hello")
            assert await to_thread.run_sync(receive_all, sock) == b""


@pytest.mark.by_turns("anyio_backend")
@pytest.mark.parametrize(
    ("addresses", "options", "text"),
    [
        (("udp://127.0.0.1:0",), ServeOptions(), "control has no effect: every address is for UDP"),
        pytest.param(
            (TCP,),
            ServeOptions(engine="events"),
            "control needs a task for each connection: engine must be auto or tasks",
            marks=needs_epoll,
        ),
    ],
)
async def test_a_server_without_connections_to_change_has_no_control(
    addresses: Sequence[str], options: ServeOptions, text: str
) -> None:
    async with open_server(*addresses, options=options) as server:
        with pytest.raises(UsageError) as caught:
            async with open_control(server, "127.0.0.1:0"):
                pass

    assert str(caught.value) == text
    assert caught.value.options[0] == "control"
