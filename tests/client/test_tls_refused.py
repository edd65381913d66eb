"""A TLS 1.3 server refuses a client after the client's handshake; the client's error says why."""

from __future__ import annotations

import datetime
import re
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from anyio import create_task_group, fail_after

from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.errors import ConnectError, EchoTruncated
from anyecho.net.tls.contexts import TLSClientOptions
from tests.net.pairs import reset
from tests.support.certificates import VERSIONS, Files, authority
from tests.support.peers import SOON, receive_all
from tests.support.process import peer
from tests.support.tls13 import ALERT, DATA, crafted_server


def stranger(files: Files) -> Path:
    path = files.client.with_name("stranger.pem")
    trustme.CA().issue_cert("peer@example.org").private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


def expired(files: Files) -> Path:
    path = files.client.with_name("expired.pem")
    old = authority().issue_cert("peer@example.org", not_after=datetime.datetime(2001, 1, 1))
    old.private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


@pytest.mark.parametrize("payload", [b"x", b"x" * 1_000_000], ids=["small", "large"])
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize(
    ("shown", "told"),
    [
        (None, "cert is missing: .* requires a client certificate|it requires a client certificate"),
        (stranger, r"cert is refused by .*: the server does not trust its CA \(alert unknown_ca\)"),
        (expired, r"cert is refused by .*: it has expired \(alert certificate_expired\)"),
    ],
)
@pytest.mark.by_turns("anyio_backend")
async def test_the_error_says_why_a_client_certificate_was_refused(
    shown: Callable[[Files], Path] | None, told: str, version: ssl.TLSVersion, payload: bytes, files: Files
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    context.load_verify_locations(files.cacert)
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = version

    def refuse(sock: socket.socket) -> None:
        sock.settimeout(SOON)
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(sock.dup(), server_side=True)
        sock.shutdown(socket.SHUT_WR)
        receive_all(sock)

    tls = TLSClientOptions(cacert=files.cacert, cert=shown and shown(files))
    with peer(refuse) as address, pytest.raises(ConnectError) as caught, fail_after(SOON):
        async with await connect(address.replace("tcp", "tls"), options=ConnectOptions(tls=tls)) as client:
            await client.exchange(payload)
    assert re.search(told, str(caught.value))
    assert address.removeprefix("tcp") in str(caught.value)


#: Alerts about the client's certificate or handshake (RFC 8446, section 6), by number.
REFUSALS = {
    40: "refuses the handshake",
    41: "cert is missing",
    42: "cert is refused .*bad_certificate",
    43: "cert is refused .*unsupported_certificate",
    44: "cert is refused .*certificate_revoked",
    45: "cert is refused .*certificate_expired",
    46: "cert is refused .*certificate_unknown",
    48: "cert is refused .*unknown_ca",
    49: "cert is refused .*access_denied",
    51: "cert is refused .*decrypt_error",
    116: "cert is missing",
}
#: Other alerts.
FAILURES = {10: "unexpected_message", 20: "bad_record_mac", 47: "illegal_parameter", 80: "internal_error"}


@pytest.mark.parametrize("number", REFUSALS)
@pytest.mark.parametrize("payload", [b"x", b""], ids=["sent", "unsent"])
@pytest.mark.by_turns("anyio_backend")
async def test_a_refusal_alert_before_any_echo_is_a_connect_error(
    number: int, payload: bytes, files: Files
) -> None:
    tls = ConnectOptions(timeout=SOON, tls=TLSClientOptions(cacert=files.cacert))
    async with crafted_server(tls) as (client, server):
        server.send(server.seal(ALERT, bytes([2, number])))
        with pytest.raises(ConnectError, match=REFUSALS[number]) as caught:
            async with client.send([payload]) as echo:
                async for _ in echo:
                    pass
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", FAILURES)
async def test_an_alert_that_is_no_refusal_is_a_broken_connection(number: int, files: Files) -> None:
    tls = ConnectOptions(timeout=SOON, tls=TLSClientOptions(cacert=files.cacert))
    async with crafted_server(tls) as (client, server):
        server.send(server.seal(ALERT, bytes([2, number])))
        with pytest.raises(EchoTruncated) as caught:
            await client.exchange(b"x")
        assert str(caught.value).startswith(f"the connection broke (the peer sent the alert {FAILURES[number]}): ")


@pytest.mark.parametrize("echo", [b"", b"a"], ids=["of an earlier exchange", "of the same exchange"])
async def test_an_alert_after_an_echo_is_a_broken_connection(echo: bytes, files: Files) -> None:
    tls = ConnectOptions(timeout=SOON, tls=TLSClientOptions(cacert=files.cacert))
    async with crafted_server(tls) as (client, server):

        async def answer(*answers: tuple[int, bytes]) -> None:
            await server.read()
            server.send(b"".join(server.seal(*each) for each in answers))

        if not echo:
            async with create_task_group() as tasks:
                tasks.start_soon(answer, (DATA, b"a"))
                assert await client.exchange(b"a") == b"a"
        async with create_task_group() as tasks:
            tasks.start_soon(answer, (DATA, echo), (ALERT, bytes([2, 42])))
            with pytest.raises(EchoTruncated, match=rf"the alert bad_certificate\): byte {len(echo)} is missing"):
                await client.exchange(b"ab")


async def test_an_alert_is_reported_though_a_reset_follows_it(files: Files) -> None:
    """A server that closes while the client sends resets the connection."""
    tls = ConnectOptions(timeout=SOON, tls=TLSClientOptions(cacert=files.cacert))
    async with crafted_server(tls) as (client, server):
        server.send(server.seal(ALERT, bytes([2, 116])))
        reset(server.sock)
        with pytest.raises(ConnectError, match="requires a client certificate"):
            await client.exchange(b"x" * 1_000_000)
