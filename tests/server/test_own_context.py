"""A context of the caller's own, for a server or a client, keeps its settings."""

from __future__ import annotations

import ssl

import pytest
from anyio.streams.tls import TLSAttribute

from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.errors import ConnectError, EchoError
from anyecho.net.tls.contexts import TLSClientOptions, TLSServerOptions
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.support.certificates import VERSIONS, Files

TLS = "tls://127.0.0.1:0"
LARGE = bytes(range(256)) * 4096


@pytest.fixture
def shown(files: Files) -> ssl.SSLContext:
    """A server context that requires client certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    context.load_verify_locations(files.cacert)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["echo"])
    return context


@pytest.fixture
def ca_context(files: Files) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files.cacert)
    context.load_cert_chain(files.client)
    context.set_alpn_protocols(["other", "echo"])
    return context


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
async def test_server_and_client_use_contexts_of_the_caller(
    version: ssl.TLSVersion, shown: ssl.SSLContext, ca_context: ssl.SSLContext
) -> None:
    names: list[str | None] = []
    shown.sni_callback = lambda _, name, __: names.append(name)
    shown.maximum_version = version
    served = ServeOptions(tls=TLSServerOptions(context=shown))
    ca_options = ConnectOptions(tls=TLSClientOptions(context=ca_context, sni="localhost"))
    async with (
        open_server(TLS, options=served) as server,
        await connect(server.addresses[0], options=ca_options) as client,
    ):
        assert await client.exchange(LARGE) == LARGE
        assert client.stream.extra(TLSAttribute.alpn_protocol) == "echo"
        assert client.stream.extra(TLSAttribute.tls_version) == version.name.replace("_", ".")

    assert names == ["localhost"]


async def test_the_callers_context_decides_which_clients_are_served(
    shown: ssl.SSLContext, ca_options: ConnectOptions
) -> None:
    served = ServeOptions(tls=TLSServerOptions(context=shown), linger=0.3)
    async with open_server(TLS, options=served) as server:
        # In TLS 1.3 the server refuses the client only after the client's handshake.
        with pytest.raises((ConnectError, EchoError, OSError)):
            async with await connect(server.addresses[0], options=ca_options) as client:
                await client.exchange(b"x")


async def test_the_callers_context_decides_which_server_is_trusted(shown: ssl.SSLContext) -> None:
    suspicious = ssl.create_default_context()
    shown.verify_mode = ssl.CERT_NONE
    async with open_server(TLS, options=ServeOptions(tls=TLSServerOptions(context=shown))) as server:
        with pytest.raises(ConnectError, match="certificate verify failed"):
            await connect(server.addresses[0], options=ConnectOptions(tls=TLSClientOptions(context=suspicious)))
        suspicious.check_hostname, suspicious.verify_mode = False, ssl.CERT_NONE
        options = ConnectOptions(tls=TLSClientOptions(context=suspicious))
        async with await connect(server.addresses[0], options=options) as client:
            assert await client.exchange(b"x") == b"x"


async def test_a_certificate_reloaded_by_the_caller_is_used_for_new_handshakes(
    shown: ssl.SSLContext, ca_options: ConnectOptions, files: Files
) -> None:
    shown.verify_mode = ssl.CERT_NONE
    async with open_server(TLS, options=ServeOptions(tls=TLSServerOptions(context=shown))) as server:
        assert server.certificates is not None
        seen = []
        for pem in ((files.cert, files.key), (files.client, None)):
            shown.load_cert_chain(*pem)
            server.certificates.reload()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            options = ConnectOptions(tls=TLSClientOptions(context=context))
            async with await connect(server.addresses[0], options=options) as client:
                seen.append(client.stream.extra(TLSAttribute.peer_certificate_binary))

        assert len(set(seen)) == 2
