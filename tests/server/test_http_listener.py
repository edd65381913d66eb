"""The listener for HTTP: who may ask, how many, and what its failures leave alone."""

from __future__ import annotations

import errno
import logging
import re
import socket
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from anyio import fail_after, to_thread
from anyio.abc import SocketAttribute

from anyecho.address import Address, UnixAddress, parse_address
from anyecho.errors import AddressError, BindError, UsageError
from anyecho.net.http import HTTPLimits, Request, Response
from anyecho.server import http_listener
from anyecho.server.http_listener import HTTPListener, RequestChecks, open_http, parse_http_address, url_of
from tests.support.machine import needs_ipv6
from tests.support.peers import SOON, converse, dial, receive_all, until
from tests.support.tasks import wait_all_tasks_blocked


@pytest.fixture(autouse=True)
def engine() -> None:
    """No engine of the echo serves HTTP."""


LOOPBACK = parse_address("127.0.0.1:0")


async def greet(request: Request) -> Response:
    return Response(body=b"hello")


async def ask(address: Address, path: str = "/", **fields: str) -> bytes:
    """Send a request and return the answer."""
    lines = [f"GET {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
    request = "\r\n".join([*lines, "", ""]).encode()
    return await to_thread.run_sync(lambda: converse(dial(address), request))


def status_of(answer: bytes) -> int:
    found = re.match(rb"HTTP/1.1 (\d+) ", answer)
    assert found
    return int(found[1])


async def test_requests_are_answered_on_each_socket_of_the_address() -> None:
    async with open_http(parse_address("localhost:0"), greet, purpose="test") as http:
        for address in http.addresses:
            answer = await ask(address, Host="localhost")
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.endswith(b"\r\n\r\nhello")


HOSTS = {
    **dict.fromkeys(["localhost", "LOCALHOST:8474", "a.localhost:1", "127.0.0.1", "127.0.0.1:8474"], 200),
    **dict.fromkeys(["[::1]", "[::1]:8474", "192.0.2.1", "toxiproxy:8474", "anyecho", "localhost.:1", ""], 200),
    **dict.fromkeys(["example.com", "example.com:8474", "127.0.0.1.example.com", "a.b.", "[::1].a.b"], 403),
    **dict.fromkeys(["localhost.example.com", "notlocalhost.a", "127.0.0.1 .a", "[::1"], 403),
}


@pytest.mark.by_turns("anyio_backend")
@pytest.mark.parametrize("host", HOSTS)
async def test_a_host_that_its_owner_may_rebind_is_refused(host: str) -> None:
    async with open_http(LOOPBACK, greet, purpose="test") as http:
        assert status_of(await ask(http.addresses[0], Host=host)) == HOSTS[host]


@pytest.mark.by_turns("anyio_backend")
@pytest.mark.parametrize(
    ("checks", "path", "fields", "status"),
    [
        (RequestChecks(), "/", {"User_Agent": "Mozilla/5.0 (X11)"}, 403),
        (RequestChecks(), "/", {"User_Agent": "curl/8 Mozilla/"}, 200),
        (RequestChecks(browsers=True), "/", {"User_Agent": "Mozilla/5.0 (X11)"}, 200),
        (RequestChecks(any_host=frozenset({"/healthz"})), "/healthz", {"Host": "a.b"}, 200),
        (RequestChecks(any_host=frozenset({"/healthz"})), "/healthz?x", {"Host": "a.b"}, 200),
        (RequestChecks(any_host=frozenset({"/healthz"})), "/healthz/", {"Host": "a.b"}, 403),
        (RequestChecks(any_host=frozenset({"/healthz"})), "/", {"Host": "a.b"}, 403),
    ],
)
async def test_browsers_are_refused_and_paths_may_have_any_host(
    checks: RequestChecks, path: str, fields: dict[str, str], status: int
) -> None:
    async with open_http(LOOPBACK, greet, purpose="test", checks=checks) as http:
        assert status_of(await ask(http.addresses[0], path, **{"Host": "x", **fields})) == status


async def test_a_unix_socket_is_asked_under_any_host(short_path: Path) -> None:
    async with open_http(UnixAddress(path=str(short_path / "http")), greet, purpose="test") as http:
        assert status_of(await ask(http.addresses[0], Host="a.b", User_Agent="Mozilla/5.0")) == 200

    with pytest.raises(FileNotFoundError):
        dial(http.addresses[0])


@pytest.mark.parametrize(
    ("text", "url"),
    [("8474", "http://localhost:8474"), ("[::1]:0", "http://[::1]:0"), ("unix:/run/a", "unix:/run/a")],
)
def test_an_address_may_be_a_port_of_localhost(text: str, url: str) -> None:
    assert url_of(parse_http_address(text, "control")) == url


@pytest.mark.parametrize("text", ["udp://localhost:1", "tls://localhost:1", "fd://3", "localhost:1?proxy=v2"])
def test_an_address_of_no_plain_stream_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="control is plain HTTP: give HOST:PORT or ") as caught:
        parse_http_address(text, "control")

    assert caught.value.options == ("control",)


def test_a_port_out_of_range_is_refused() -> None:
    with pytest.raises(AddressError, match="port 65536 is not in"):
        parse_http_address("65536", "control")


async def test_an_address_in_use_is_refused(opened: ExitStack) -> None:
    taken = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    with pytest.raises(BindError, match="it is in use already"):
        async with open_http(parse_address(f"127.0.0.1:{taken.getsockname()[1]}"), greet, purpose="test"):
            pass


@pytest.mark.parametrize(
    ("address", "warned"), [("127.0.0.1:0", 0), pytest.param("[::1]:0", 0, marks=needs_ipv6), ("0.0.0.0:0", 1)]
)
async def test_an_address_beyond_loopback_is_warned_of(
    address: str, warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "anyecho.server")
    async with open_http(parse_address(address), greet, purpose="test") as http:
        url = url_of(http.addresses[0])

    messages = [f"test on {url}", f"test is open to the network on {url}: it has no authentication"]
    assert [record.getMessage() for record in caplog.records] == messages[: 1 + warned]


def is_held(http: HTTPListener, port: int) -> bool:
    """Whether the connection from `port` is accepted and open."""
    streams = [slot.connection.stream for slot in http._slots._held]
    return port in [stream.extra(SocketAttribute.remote_port) for stream in streams]


async def test_the_longest_idle_connection_is_closed_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch, opened: ExitStack
) -> None:
    monkeypatch.setattr(http_listener, "_MIN_IDLE", 0.0)
    async with open_http(LOOPBACK, greet, purpose="test") as http:
        idle = []
        for _ in range(100):
            idle.append(opened.enter_context(dial(http.addresses[0])))
            port = idle[-1].getsockname()[1]
            # Also for a millisecond: the clock of uvloop counts no less.
            await until(partial(is_held, http, port))
        assert status_of(await ask(http.addresses[0], Host="x")) == 200

        assert [await to_thread.run_sync(receive_all, sock) for sock in idle[:69]] == [b""] * 69
        for sock in idle[69:]:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1)


async def test_new_connections_wait_while_every_other_one_is_new(opened: ExitStack) -> None:
    """Answered ones that the peer keeps open hold up no other, although their close may take long."""
    async with open_http(LOOPBACK, greet, purpose="test", limits=HTTPLimits(close=600)) as http:
        first = [opened.enter_context(dial(http.addresses[0])) for _ in range(40)]
        for sock in first:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with fail_after(SOON):
            answers = [await to_thread.run_sync(receive_all, sock) for sock in first]

    assert [status_of(answer) for answer in answers] == [200] * 40


async def test_a_connection_with_an_unread_request_is_not_closed_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch, opened: ExitStack
) -> None:
    monkeypatch.setattr(http_listener, "_MIN_IDLE", 0.0)
    async with open_http(LOOPBACK, greet, purpose="test") as http:
        held = [opened.enter_context(dial(http.addresses[0])) for _ in range(32)]
        await until(lambda: len(http._slots._held) == 32)
        await until(partial(is_held, http, held[-1].getsockname()[1]))
        late = opened.enter_context(dial(http.addresses[0]))
        for sock in [*held, late]:  # without a pass of the loop: it is busy
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = [await to_thread.run_sync(receive_all, sock) for sock in [*held, late]]

    assert [status_of(answer) for answer in answers] == [200] * 33


async def test_all_idle_connections_are_closed_if_descriptors_run_out(
    monkeypatch: pytest.MonkeyPatch, opened: ExitStack
) -> None:
    monkeypatch.setattr(http_listener, "_MIN_IDLE", -1.0)  # idle at once
    accept, failures = socket.socket.accept, [errno.EMFILE]

    def accept_later(sock: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise OSError(failures.pop(), "Too many open files")
        return accept(sock)

    async with open_http(LOOPBACK, greet, purpose="test") as http:
        idle = [opened.enter_context(dial(http.addresses[0])) for _ in range(3)]
        for sock in idle:
            await until(partial(is_held, http, sock.getsockname()[1]))
        monkeypatch.setattr(socket.socket, "accept", accept_later)
        assert status_of(await ask(http.addresses[0], Host="x")) == 200
        assert not any(is_held(http, sock.getsockname()[1]) for sock in idle)
        assert [await to_thread.run_sync(receive_all, sock) for sock in idle] == [b""] * 3


async def test_a_listener_that_fails_is_logged_and_the_block_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, opened: ExitStack
) -> None:
    def accept(_: socket.socket) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    async with open_http(LOOPBACK, greet, purpose="test") as http:
        monkeypatch.setattr(socket.socket, "accept", accept)
        opened.enter_context(dial(http.addresses[0]))
        await wait_all_tasks_blocked()
        while not caplog.records:
            await wait_all_tasks_blocked()

    assert caplog.messages == ["the listener of test has failed: Invalid argument"]


async def test_all_connections_are_closed_with_the_block(opened: ExitStack) -> None:
    async with open_http(LOOPBACK, greet, purpose="test") as http:
        idle = opened.enter_context(dial(http.addresses[0]))
        await ask(http.addresses[0], Host="x")

    assert idle.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        dial(http.addresses[0])


async def test_an_exception_in_the_block_passes_unchanged() -> None:
    with pytest.raises(LookupError, match="mine"):
        async with open_http(LOOPBACK, greet, purpose="test"):
            raise LookupError("mine")
