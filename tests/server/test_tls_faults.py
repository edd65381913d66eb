"""Faults of TLS, as the module ssl over a plain blocking socket sees them."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from anyio import create_task_group, create_tcp_listener, fail_after, to_thread
from anyio.abc import ByteStream, SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream

from anyecho.errors import UsageError
from anyecho.faults import (
    ConnectionEnded,
    ExpiredCertificate,
    Fault,
    Latency,
    LimitData,
    NoCloseNotify,
    ResetPeer,
    SelfSignedCertificate,
    StalledHandshake,
    WrongNameCertificate,
    spoil,
)
from anyecho.net.tls.contexts import TLSServerOptions
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.support.certificates import Files, client_context, server_context
from tests.support.peers import SOON, dial, until_closed
from tests.support.tls import TLS
from tests.support.tls import options as tls_options

pytestmark = pytest.mark.by_turns("engine")


def options(files: Files, *faults: Fault, **given: Any) -> ServeOptions:
    return tls_options(files, **{"engine": "auto", "seed": 1, "faults": faults, **given})


def generated(*faults: Fault) -> ServeOptions:
    tls = TLSServerOptions(ssl_self_signed=True)
    return ServeOptions(engine="auto", seed=1, linger=0.3, faults=faults, tls=tls)


async def talk(
    server: Server, script: Callable[[ssl.SSLSocket], Any], context: ssl.SSLContext | None = None
) -> Any:
    """Run `script` in a thread, over TLS."""

    def run() -> Any:
        wrap = (context or client_context()).wrap_socket
        with wrap(dial(server.address), server_hostname="localhost", suppress_ragged_eofs=False) as sock:
            return script(sock)

    with fail_after(SOON):
        return await to_thread.run_sync(run)


def converse(sock: ssl.SSLSocket) -> bytes:
    sock.sendall(b"hello")
    return sock.recv(100)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (ExpiredCertificate(on=1), "certificate has expired"),
        (WrongNameCertificate(on=1), "Hostname mismatch"),
        (SelfSignedCertificate(on=1), "self.signed certificate"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_only_the_flaw_of_a_certificate_is_wrong_and_only_on_its_connection(
    fault: Fault, reason: str
) -> None:
    async with open_server(TLS, options=generated(fault)) as server:
        assert server.certificates is not None
        trusting = ssl.create_default_context(cafile=server.certificates.cacert)
        with pytest.raises(ssl.SSLCertVerificationError, match=reason):
            await talk(server, converse, trusting)
        assert await talk(server, converse, trusting) == b"hello"
        await until_closed(server, 2)
        assert server.stats.closed["handshake"] == 1


async def test_a_self_signed_certificate_needs_no_generated_ca(files: Files) -> None:
    async with open_server(TLS, options=options(files, SelfSignedCertificate(on=1))) as server:
        with pytest.raises(ssl.SSLCertVerificationError, match=r"self.signed certificate"):
            await talk(server, converse)
        assert await talk(server, converse) == b"hello"


@pytest.mark.parametrize("fault", [ExpiredCertificate(), WrongNameCertificate()], ids=lambda fault: fault.name)
async def test_a_certificate_that_the_generated_ca_signs_needs_it(fault: Fault, files: Files) -> None:
    with pytest.raises(UsageError, match=r"needs ssl_self_signed: the generated CA signs it$"):
        async with open_server(TLS, options=options(files, fault)):
            pytest.fail("it opened")


async def test_a_stalled_handshake_ends_at_the_handshake_timeout(files: Files) -> None:
    stalled = options(files, StalledHandshake(on=1), handshake_timeout=0.2)
    async with open_server(TLS, options=stalled) as server:

        def shake_hands() -> None:
            with dial(server.address) as sock:
                sock.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    client_context().wrap_socket(sock, server_hostname="localhost")

        await to_thread.run_sync(shake_hands)
        assert await talk(server, converse) == b"hello"
        await until_closed(server, 2)
        assert server.stats.closed["handshake"] == 1


async def test_a_stalled_handshake_continues_after_its_time(files: Files) -> None:
    async with open_server(TLS, options=options(files, StalledHandshake(seconds=0.15))) as server:
        start = time.monotonic()
        assert await talk(server, converse) == b"hello"
        assert time.monotonic() - start >= 0.15


@pytest.mark.parametrize("others", [(), (Latency(latency=0.05),)], ids=["alone", "with latency"])
async def test_an_end_without_close_notify_is_a_truncation(others: tuple[Fault, ...], files: Files) -> None:
    async with open_server(TLS, options=options(files, NoCloseNotify(), *others)) as server:

        def script(sock: ssl.SSLSocket) -> bytes:
            echo = converse(sock)
            # The server ends after a FIN. SSLSocket.shutdown() would also forget TLS.
            with socket.socket(fileno=os.dup(sock.fileno())) as plain:
                plain.shutdown(socket.SHUT_WR)
            with pytest.raises(ssl.SSLEOFError):
                sock.recv(100)
            return echo

        assert await talk(server, script) == b"hello"


async def test_a_limit_without_close_notify_is_a_truncation(files: Files) -> None:
    async with open_server(TLS, options=options(files, LimitData(bytes=3), NoCloseNotify())) as server:

        def script(sock: ssl.SSLSocket) -> bytes:
            echo = converse(sock)
            with pytest.raises(ssl.SSLEOFError):
                sock.recv(100)
            return echo

        assert await talk(server, script) == b"hel"


async def test_faults_of_tls_need_an_address_over_tls() -> None:
    faulty = ServeOptions(engine="auto", faults=(StalledHandshake(),))
    with pytest.raises(UsageError, match=r"^stalled_handshake has no effect: no address is for TLS$"):
        async with open_server("tcp://127.0.0.1:0", options=faulty):
            pytest.fail("it opened")


async def test_connections_without_tls_are_numbered_and_drawn_for_themselves(files: Files) -> None:
    async with open_server("tcp://127.0.0.1:0", TLS, options=options(files, NoCloseNotify())) as server:
        with dial(server.addresses[0]) as sock:
            sock.sendall(b"x")
            assert await to_thread.run_sync(sock.recv, 10) == b"x"
            kinds = {type(each).__name__ for each in server._connections}
            assert kinds <= {"EventConnection", "TaskConnection"}  # the second one without epoll


@pytest.mark.parametrize("fault", [NoCloseNotify(), ResetPeer()], ids=lambda fault: fault.name)
async def test_streams_of_anyio_over_tls_end_abruptly_too(fault: Fault) -> None:
    async def serve(stream: SocketStream) -> None:
        wrapped = await TLSStream.wrap(stream, ssl_context=server_context(), server_side=True)
        spoiled: ByteStream = spoil(wrapped, fault)
        with suppress(ConnectionEnded):
            await spoiled.send(b"hello")
        await spoiled.aclose()

    def script(port: int) -> None:
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            client_context().wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as sock,
            pytest.raises((ssl.SSLEOFError, ConnectionResetError)),
        ):
            while sock.recv(100):
                pass
            pytest.fail("close_notify arrived")

    async with await create_tcp_listener(local_host="127.0.0.1") as listener, create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        await to_thread.run_sync(script, listener.extra(SocketAttribute.local_port))
        tasks.cancel_scope.cancel()
