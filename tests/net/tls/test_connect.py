"""The server name that a TLS client requests and verifies, and the errors for invalid names."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
from anyio import fail_after

from anyecho.address import Address, TCPAddress
from anyecho.errors import CertificateError, ConnectError, UsageError
from anyecho.net.connect import connect_stream
from anyecho.net.resolve import resolve
from anyecho.net.sockets import SocketOptions
from anyecho.net.tls.connect import client_session
from anyecho.net.tls.contexts import Certificates, TLSClientOptions, TLSServerOptions, client_context
from anyecho.net.tls.records import Records
from tests.support.certificates import files_in, server_context
from tests.support.peers import SOON
from tests.support.process import peer

#: 260 bytes, in labels that are short enough.
LONG = ".".join(["x" * 51] * 5)


@pytest.fixture
def ca_options(tmp_path: Path) -> TLSClientOptions:
    return TLSClientOptions(cacert=files_in(tmp_path).cacert)


@pytest.mark.parametrize(
    "name", [LONG, "x" * 64, "a..b", ".a", ".", "..", "", "a\0b", "a b", "a\n", "a/b", "\udcff", "localhost.."]
)
def test_an_invalid_sni_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="sni is not a host name") as caught:
        TLSClientOptions(sni=name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.example", "a.example.", "bücher.example", "my_host", "127.0.0.1", "::1"])
def test_a_valid_sni_is_accepted(name: str) -> None:
    assert TLSClientOptions(sni=name).sni == name


@pytest.mark.parametrize("host", ["ü." * 60, "x" * 64, "a..b", ".a"])
def test_a_host_that_no_certificate_can_have_is_an_error_of_one_line(
    host: str, ca_options: TLSClientOptions
) -> None:
    with pytest.raises(ConnectError, match="no certificate can be for"):
        client_session(TCPAddress(host=host, port=1, tls=True), ca_options)


@pytest.mark.parametrize(
    ("host", "sni", "asked"),
    [
        ("localhost", None, "localhost"),
        ("localhost.", None, "localhost"),
        ("127.0.0.1", "a.example.", "a.example"),
        ("", None, "localhost"),
        ("::1%lo", None, "::1"),
        ("bücher.example.", None, "xn--bcher-kva.example"),
    ],
)
def test_the_requested_server_name_has_no_trailing_dot(
    host: str, sni: str | None, asked: str, ca_options: TLSClientOptions
) -> None:
    options = TLSClientOptions(cacert=ca_options.cacert, sni=sni)
    session = client_session(TCPAddress(host=host, port=1, tls=True), options)
    assert session.tls.server_hostname == asked


async def test_a_host_with_a_trailing_dot_is_verified_without_it(ca_options: TLSClientOptions) -> None:
    def answer(sock: socket.socket) -> None:
        with server_context().wrap_socket(sock, server_side=True) as secured:
            secured.recv(1)

    with peer(answer) as text:
        address = TCPAddress(host="localhost.", port=int(text.rpartition(":")[2]), tls=True)
        with fail_after(SOON):
            stream = await connect_stream(address, family=4, options=SocketOptions(), tls=ca_options)
            await stream.send(b"x")
            await stream.aclose()


@pytest.mark.parametrize("name", ["localhost", "localhost.", "LOCALHOST", "Localhost."])
async def test_localhost_is_both_loopback_addresses_however_it_is_written(name: str) -> None:
    assert [sockaddr[0] for _, sockaddr in await resolve(name, 7)] == ["::1", "127.0.0.1"]


def test_a_self_signed_certificate_has_names_without_a_trailing_dot() -> None:
    address: Address = TCPAddress(host="echo.test.", port=0, tls=True)
    certificates = Certificates(TLSServerOptions(ssl_self_signed=True), [address])
    trusting = ssl.create_default_context(cafile=certificates.cacert)
    certificates.close()
    client = Records(trusting, server_side=False, server_hostname="echo.test")
    server = Records(certificates.context, server_side=True)
    while not (client.handshake() and server.established):
        server.feed(client.take())
        server.handshake()
        client.feed(server.take())


@pytest.mark.parametrize("cacert", [True, False], ids=["cacert", "system"])
def test_a_key_log_that_cannot_be_written_is_named(
    cacert: bool, ca_options: TLSClientOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "absent" / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(path))
    with pytest.raises(CertificateError) as caught:
        client_context(ca_options if cacert else TLSClientOptions())
    assert str(caught.value) == (
        f"cannot write TLS keys to {path} (set by SSLKEYLOGFILE): No such file or directory"
    )
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    with pytest.raises(CertificateError, match="cannot use /absent"):
        client_context(TLSClientOptions(cacert="/absent"))
