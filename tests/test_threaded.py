"""A server in a thread of its own: what a program without an event loop, or with another one, can do with it."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
from anyio import connect_tcp, fail_after, get_cancelled_exc_class, move_on_after, sleep_forever

import anyecho
from anyecho import threaded
from anyecho.faults import Corrupt, ExpiredCertificate, Fault, Latency, Loss, SelfSignedCertificate, Slicer
from anyecho.handlers import discard, upper
from anyecho.server.recorder import RECORDED_BYTES
from tests.support.machine import needs_epoll
from tests.support.process import TIMEOUT, wait_until

SELF_SIGNED = anyecho.ServeOptions(tls=anyecho.TLSServerOptions(ssl_self_signed=True))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [each.name for each in threading.enumerate() if each.name.startswith("anyecho-server")] == []


@pytest.fixture
def server(backend: Any) -> Iterator[anyecho.ThreadedServer]:
    with serving(backend) as server:
        yield server


def serving(backend: Any, *addresses: str, **arguments: Any) -> AbstractContextManager[anyecho.ThreadedServer]:
    return anyecho.threaded_server(*addresses, backend=backend, **arguments)


def dial(server: anyecho.ThreadedServer) -> socket.socket:
    return socket.create_connection((server.host, server.port), TIMEOUT)


def exchange(sock: socket.socket, payload: bytes) -> bytes:
    """Send `payload` and half-close; return what comes back."""
    sock.sendall(payload)
    sock.shutdown(socket.SHUT_WR)
    with sock.makefile("rb") as file:
        return file.read()


def test_a_server_echoes_when_the_block_begins_and_refuses_after_it(backend: Any) -> None:
    with serving(backend) as server, dial(server) as sock:
        assert exchange(sock, b"hello") == b"hello"
        assert server.address == anyecho.TCPAddress(host="127.0.0.1", port=server.port) == server.addresses[0]
        assert repr(server) == f"<server on tcp://127.0.0.1:{server.port}>"
    with pytest.raises(ConnectionRefusedError):
        dial(server)
    server.close()
    server.abort()
    server.drain()
    server.wait_for_connections(1)
    assert server.stats.closed == {"eof": 1}


def test_each_connection_has_a_record(server: anyecho.ThreadedServer) -> None:
    with dial(server) as first, dial(server) as second:
        server.wait_for_connections(2)
        assert exchange(second, b"second") == b"second"
        server.wait_until(lambda: server.connections[1].closed)
        records = [(each.peer, each.received, each.closed) for each in server.connections]
        assert records == [(first.getsockname(), b"", None), (second.getsockname(), b"second", "eof")]
        assert "eof, received b'second'" in repr(server.connections[1])


def test_a_record_keeps_the_first_bytes() -> None:
    payload = bytes(range(256)) * (RECORDED_BYTES // 128)
    with anyecho.threaded_server(handler=discard) as server, dial(server) as sock:
        sock.sendall(payload)
        server.wait_until(lambda: len(server.connections[0].received) == RECORDED_BYTES)
        assert server.connections[0].received == payload[:RECORDED_BYTES]


@pytest.mark.parametrize(
    "fault", [Corrupt(offset=1, stream="upstream"), Slicer(average_size=1)], ids=lambda each: each.name
)
def test_a_record_is_what_the_handler_receives(fault: Fault) -> None:
    with (
        anyecho.threaded_server(options=anyecho.ServeOptions(faults=(fault,), seed=1), handler=upper) as server,
        dial(server) as sock,
    ):
        echoed = exchange(sock, b"abc")
        assert server.seed == 1
        assert server.connections[0].received.upper() == echoed
        assert (echoed == b"ABC") is (fault.name == "slicer")


def test_faults_change_while_the_server_runs(server: anyecho.ThreadedServer) -> None:
    with dial(server) as before:
        server.wait_for_connections(1)
        server.set_faults(Corrupt(offset=0))
        with dial(server) as spoiled:
            assert exchange(spoiled, b"hello") != b"hello"
        before.sendall(b"x")
        assert before.recv(1) != b"x"
        server.set_faults(mine=Corrupt(rate=1, on=1))
        before.sendall(b"x")
        assert before.recv(1) != b"x"
        server.set_faults()
        assert exchange(before, b"hello") == b"hello"
    with dial(server) as after:
        assert exchange(after, b"hello") == b"hello"


@pytest.mark.parametrize(
    ("address", "fault", "error"),
    [
        ("udp://127.0.0.1:0", Loss(loss_rate=1), "loss is for datagrams, of which the faults are set at the start"),
        ("tcp://127.0.0.1:0", Loss(loss_rate=1), "loss has no effect: no address is for UDP"),
        (
            "tcp://127.0.0.1:0",
            SelfSignedCertificate(),
            "self_signed_certificate has no effect: no address is for TLS",
        ),
    ],
)
def test_a_fault_that_cannot_be_set_is_refused(address: str, fault: Fault, error: str) -> None:
    with anyecho.threaded_server(address) as server, pytest.raises(anyecho.UsageError) as caught:
        server.set_faults(fault)
    assert str(caught.value) == error
    server.set_faults(fault)


def test_a_certificate_with_a_flaw_is_presented_from_then_on() -> None:
    with anyecho.threaded_server("tls://127.0.0.1:0", options=SELF_SIGNED) as server:
        context = ssl.create_default_context(cafile=str(server.cacert))
        server.set_faults(ExpiredCertificate())
        with dial(server) as sock, pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            context.wrap_socket(sock, server_hostname="localhost")


def test_a_client_over_tls_trusts_the_generated_ca() -> None:
    with anyecho.threaded_server("tls://127.0.0.1:0", options=SELF_SIGNED) as server:
        context = ssl.create_default_context(cafile=str(server.cacert))
        with dial(server) as sock, context.wrap_socket(sock, server_hostname="localhost") as over_tls:
            over_tls.sendall(b"hello")
            assert over_tls.recv(5) == b"hello"
        assert server.connections[0].received == b"hello"


def test_datagrams_and_unix_sockets_are_served(short_path: Path) -> None:
    path = str(short_path / "echo")
    with (
        anyecho.threaded_server(f"unix:{path}", "udp://127.0.0.1:0") as server,
        socket.socket(socket.AF_UNIX) as stream,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        stream.connect(path)
        datagrams.settimeout(TIMEOUT)
        datagrams.connect(("127.0.0.1", server.port))
        datagrams.send(b"hello")
        assert (datagrams.recv(9), exchange(stream, b"hello")) == (b"hello", b"hello")
        with pytest.raises(anyecho.UsageError, match=f"^the server has no host: it listens on unix:{path}"):
            _ = server.host
        assert server.cacert is None


def test_a_wait_that_is_in_vain_says_what_is_there(server: anyecho.ThreadedServer) -> None:
    with dial(server):
        server.wait_for_connections(1)
        with pytest.raises(TimeoutError, match=r"^fewer than 2 connections after 0.01 s: \[<connection from "):
            server.wait_for_connections(2, timeout=0.01)
        with pytest.raises(TimeoutError, match=r"^the condition is false after 0.01 s: \["):
            server.wait_until(lambda: False, timeout=0.01)


def test_close_refuses_and_drain_ends_connections(server: anyecho.ThreadedServer) -> None:
    with dial(server) as sock:
        server.wait_for_connections(1)
        server.close()
        with pytest.raises(ConnectionRefusedError):
            dial(server)
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"
        server.drain(0)
        assert sock.recv(5) == b""
        assert server.stats.closed == {"drained": 1}


def test_abort_ends_connections(server: anyecho.ThreadedServer) -> None:
    with dial(server) as sock:
        server.wait_for_connections(1)
        server.abort()
        server.wait_until(lambda: server.stats.closed)
        assert sock.recv(5) == b""


def fail_to_accept(server: anyecho.ThreadedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next accept(2) of `server` fail for good."""

    def accept(_: socket.socket) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(socket.socket, "accept", accept)
    with suppress(OSError):  # without epoll, it may have failed already
        dial(server).close()


def test_an_error_of_the_server_is_raised_at_the_end(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(OSError, match="Invalid argument") as caught,
        serving(backend) as server,
        anyecho.threaded_control(server, "127.0.0.1:0"),
    ):
        fail_to_accept(server, monkeypatch)
        wait_until(lambda: not server._running)
        server.close()
    assert type(caught.value) is OSError


def test_an_exception_of_the_block_has_the_error_of_the_server_as_a_note(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It depends on the moment of the failure: during the call, or before.
    with pytest.raises((CancelledError, RuntimeError)) as caught, serving(backend) as server:
        fail_to_accept(server, monkeypatch)
        server.wait_until(lambda: False, timeout=TIMEOUT)
    assert caught.value.__notes__ == ["The server has failed too: OSError(22, 'Invalid argument')"]


def test_an_exception_of_the_block_passes_unchanged(backend: Any) -> None:
    with pytest.raises(ZeroDivisionError) as caught, serving(backend) as server, dial(server):
        raise ZeroDivisionError
    assert not hasattr(caught.value, "__notes__")
    assert server.stats.active == 0


def test_the_error_of_a_handler_ends_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(stream: object) -> None:
        raise ZeroDivisionError

    with anyecho.threaded_server(handler=fail) as server, dial(server):
        server.wait_until(lambda: server.connections[0].closed == "handler")
    assert [each.levelno for each in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize(
    ("address", "options", "backend", "error"),
    [
        ("unix:/absent/echo", {}, "asyncio", "cannot listen on unix:/absent/echo: No such file or directory"),
        ("unix:/absent/echo", {}, "trio", "cannot listen on unix:/absent/echo: No such file or directory"),
        ("tcp://127.0.0.1:0", {}, "curio", "no backend 'curio'; there are asyncio, uvloop, trio"),
        pytest.param(
            "tcp://127.0.0.1:0",
            {"engine": "events"},
            "asyncio",
            "a record needs a task for each connection: engine must be auto or tasks",
            marks=needs_epoll,
        ),
    ],
)
def test_an_error_at_the_start_is_raised_in_the_thread_of_the_caller(
    address: str, options: dict[str, Any], backend: Any, error: str
) -> None:
    given = anyecho.ServeOptions(**options)
    with pytest.raises(anyecho.AnyechoError) as caught, serving(backend, address, options=given):
        pytest.fail("it opened")
    assert str(caught.value) == error
    assert not hasattr(caught.value, "__notes__")


def test_a_lack_of_threads_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OSError, match="no thread can be started for it"), anyecho.threaded_server():
        pytest.fail("it opened")


def test_ctrl_c_while_the_server_opens_ends_the_thread(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object, **__: object) -> None:
        await sleep_forever()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anyecho.server.opening.open_listeners", never)
    monkeypatch.setattr(threaded._ServerThread, "wait_ready", interrupt)
    with pytest.raises(KeyboardInterrupt), anyecho.threaded_server(backend=backend):
        pytest.fail("it opened")


async def test_an_async_test_keeps_its_loop_running(server: anyecho.ThreadedServer) -> None:
    with fail_after(TIMEOUT):
        async with await connect_tcp(server.host, server.port) as client:
            await server.await_for_connections(1)
            await client.send(b"hello")
            await server.await_until(lambda: server.connections[0].received == b"hello")
            await server.adrain(0)
        await server.adrain()


async def test_a_cancelled_wait_leaves_the_server_alone(server: anyecho.ThreadedServer) -> None:
    with move_on_after(0.01) as scope:
        try:
            await server.await_for_connections(1)
        except get_cancelled_exc_class():
            assert server.stats.accepted == 0
            raise
    assert scope.cancelled_caught
    async with await connect_tcp(server.host, server.port):
        await server.await_for_connections(1)


async def test_the_block_can_be_left_within_an_event_loop(backend: Any) -> None:
    with serving(backend) as server, socket.create_connection((server.host, server.port), TIMEOUT) as sock:
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"


async def test_the_server_obeys_within_an_event_loop(backend: Any) -> None:
    with serving(backend) as server, socket.create_connection((server.host, server.port), TIMEOUT) as sock:
        server.wait_for_connections(1)
        server.set_faults(Latency(latency=0.001))
        with anyecho.threaded_control(server, "127.0.0.1:0") as control:
            assert control.url.startswith("http://127.0.0.1:")
        server.wait_until(lambda: server.connections[0])
        server.close()
        server.drain(0)
        server.abort()
        assert sock.recv(5) == b""
    await server.adrain()  # it is closed already
