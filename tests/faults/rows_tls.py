"""Rows 6, 7, 8 and 11 over TLS: failing and endless handshakes, invalid records, truncation."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from anyio import BrokenResourceError, CancelScope, create_task_group, fail_after, to_thread

from anyecho.address import Address
from anyecho.client.options import ConnectOptions
from anyecho.net.poller import Fallback
from anyecho.net.tls.contexts import TLSClientOptions, TLSServerOptions
from anyecho.net.tls.stream import TLSStream
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.faults.rows_slowloris import LIMIT, exhaust
from tests.faults.scene import engines, good_client, logged, milliseconds, nothing_left_behind, time_limit
from tests.faults.table import Observed, Scene, injects
from tests.net.pairs import reset
from tests.support.certificates import VERSIONS, Files, client_over, files_in
from tests.support.conformance import drain, fill
from tests.support.peers import SOON, dial, receive_all, until

TLS = "tls://127.0.0.1:0"
#: The beginning of a ClientHello of 512 bytes.
PARTIAL_HELLO = b"\x16\x03\x01\x02\x00\x01"


def secured(files: Files, **others: Any) -> ServeOptions:
    return ServeOptions(tls=TLSServerOptions(ssl_certfile=files.cert, ssl_keyfile=files.key), **others)


def ca_options(files: Files) -> ConnectOptions:
    return ConnectOptions(tls=TLSClientOptions(cacert=files.cacert))


async def shake_hands(address: Address, version: ssl.TLSVersion | None = None) -> TLSStream:
    stream = client_over(dial(address), Fallback(), version)
    with fail_after(SOON):
        await stream.handshake()
    return stream


@injects(6, "1000 peers send an incomplete ClientHello, handshake_timeout=0.6 s")
async def half_a_handshake(scene: Scene) -> Observed:
    files = files_in(scene.directory)
    options = secured(files, handshake_timeout=LIMIT, linger=0.05)
    return await exhaust(PARTIAL_HELLO, "handshake", options, caller=ca_options(files), bind=TLS)


@injects(7, "over TLS, a RST in a handshake, mid-echo, and after a close_notify; in both engines")
async def resets_over_tls(scene: Scene) -> Observed:
    files = files_in(scene.directory)
    observed: dict[str, object] = {}
    with logged() as lines:
        for engine in engines():
            options = secured(files, engine=engine, linger=10)
            async with nothing_left_behind(), open_server(TLS, options=options) as server:
                await _reset_everywhere(server)
                await until(lambda: server.stats.closed.total() == 3)
                observed[engine] = dict(server.stats.closed)

    assert lines == []
    return {**observed, "log lines": 0, "descriptors and tasks left": 0}


async def _reset_everywhere(server: Server) -> None:
    [address] = server.addresses
    sock = dial(address)
    sock.sendall(PARTIAL_HELLO)
    await until(lambda: server.stats.active == 1)
    reset(sock)
    for bye in (False, True):
        stream = await shake_hands(address)
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"
        await stream.send(b"more")
        if bye:
            await stream.send_eof()
        reset(stream._sock)


@injects(
    8, "over TLS 1.2 and 1.3, peers send 1 MiB and close_notify, and keep reading; or a FIN without close_notify"
)
async def half_closes_over_tls(scene: Scene) -> Observed:
    files = files_in(scene.directory)
    payload = os.urandom(1 << 20)
    observed: dict[str, object] = {}
    for engine in engines():
        async with open_server(TLS, options=secured(files, engine=engine, linger=0.3)) as server:
            for version in VERSIONS:
                async with await shake_hands(server.addresses[0], version) as stream:
                    assert await _half_close(stream, payload) == payload
                async with await shake_hands(server.addresses[0], version) as stream:
                    await stream.send(b"whole")
                    assert await stream.receive() == b"whole"
                    stream._sock.shutdown(socket.SHUT_WR)
                    count = server.stats.closed["tls_truncated"]
                    await until(lambda: server.stats.closed["tls_truncated"] > count)  # noqa: B023 - as above
            await until(lambda: server.stats.active == 0)
            assert server.stats.closed == {"eof": 2, "tls_truncated": 2}
            observed[engine] = dict(server.stats.closed)

    return {"after close_notify": "all, then the server's", **observed}


async def _half_close(stream: TLSStream, payload: bytes) -> bytes:
    async def send() -> None:
        await stream.send(payload)
        await stream.send_eof()

    with fail_after(10):
        async with create_task_group() as tasks:
            tasks.start_soon(send)
            back = await drain(stream)

    return back


def other_protocol(sock: socket.socket) -> str:
    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert receive_all(sock) == b""
    return "closed; such a peer would not understand an alert"


def invalid_record(sock: socket.socket) -> str:
    sock.sendall(b"\x16\x03\x01\x00\x04nonsense")
    assert receive_all(sock)[0] == 21
    return "alert"


def old_version(sock: socket.socket) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # deprecated on purpose here
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="alert protocol version"):
        context.wrap_socket(sock)
    return "alert protocol version"


def silence(sock: socket.socket) -> str:
    assert receive_all(sock) == b""
    return "closed at the limit"


FAILURES: tuple[Callable[[socket.socket], str], ...] = (other_protocol, invalid_record, old_version, silence)


@injects(11, "garbage, an invalid record, TLS 1.1 and silence instead of a handshake, handshake_timeout=0.3 s")
async def failing_handshakes(scene: Scene) -> Observed:
    files = files_in(scene.directory)
    observed: dict[str, object] = {}
    with logged() as lines:
        async with (
            open_server(TLS, options=secured(files, handshake_timeout=0.3, linger=0.3)) as server,
            good_client(server.addresses[0], ca_options(files)),
        ):
            for fail in FAILURES:
                with dial(server.addresses[0]) as sock:
                    start = time.monotonic()
                    said = await to_thread.run_sync(fail, sock)
                    took = time.monotonic() - start
                assert took < time_limit(0.6)
                observed[fail.__name__.replace("_", " ")] = f"{said}, {milliseconds(took)}"
            await until(lambda: server.stats.closed == {"handshake": len(FAILURES)})

    assert [each.levelno for each in lines] == [logging.WARNING]
    return {**observed, "log lines": len(lines)}


@injects(11, "a record is tampered with; a peer floods, and neither reads nor answers the close; both engines")
async def bad_record_and_unread_close(scene: Scene) -> Observed:
    files = files_in(scene.directory)
    observed: dict[str, object] = {}
    with logged() as lines:
        for engine in engines():
            async with open_server(TLS, options=secured(files, engine=engine, linger=0.1)) as server:
                async with good_client(server.addresses[0], ca_options(files)):
                    alert = await _tamper(server)
                mute = await shake_hands(server.addresses[0])
                await fill(mute)
                start = time.monotonic()
            took = time.monotonic() - start
            assert took < time_limit(0.1 + 0.5)
            with CancelScope() as scope:
                scope.cancel()
                await mute.aclose()
            assert server.stats.closed["tls_error"] == 1
            observed[engine] = f"{alert}; the mute closed in {took:.2f} s (linger 0.1 s)"

    assert len(lines) <= 1
    return {**observed, "log lines": len(lines)}


async def _tamper(server: Server) -> str:
    """Flip a bit of a record; return the alert that comes back."""
    async with await shake_hands(server.addresses[0]) as stream:
        stream.records.send(b"bad")
        record = bytearray(stream.records.take())
        record[-1] ^= 1
        stream._sock.send(record)
        with pytest.raises(BrokenResourceError) as caught, fail_after(SOON):
            await stream.receive()
        assert "alert bad record mac" in str(caught.value.__cause__)

    return "alert bad record mac"
