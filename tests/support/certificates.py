"""The suite's CA and its certificates, made once; contexts and streams that use them."""

from __future__ import annotations

__all__ = (
    "VERSIONS",
    "Files",
    "authority",
    "client_context",
    "client_over",
    "files_in",
    "server_context",
    "server_over",
    "tls_pair",
)

import socket
import ssl
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import trustme
from anyio import create_task_group

from anyecho.net.poller import Fallback, Poller
from anyecho.net.tls.records import Records
from anyecho.net.tls.stream import TLSStream
from tests.net.pairs import raw_pair

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
_NAMES = ("localhost", "127.0.0.1", "::1")


@cache
def authority() -> trustme.CA:
    return trustme.CA()


@cache
def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*_NAMES).configure_cert(context)
    return context


@cache
def client_context(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """Trusts the CA, and allows only `version`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)
    if version is not None:
        context.minimum_version = context.maximum_version = version

    return context


def client_over(
    sock: socket.socket,
    poller: Poller | Fallback,
    version: ssl.TLSVersion | None = None,
    *,
    name: str = "localhost",
) -> TLSStream:
    sock.setblocking(False)
    records = Records(client_context(version), server_side=False, server_hostname=name)
    return TLSStream(sock, poller.register(sock), records)


def server_over(sock: socket.socket, poller: Poller | Fallback) -> TLSStream:
    sock.setblocking(False)
    return TLSStream(sock, poller.register(sock), Records(server_context(), server_side=True))


async def tls_pair(
    kind: str, poller: Poller | Fallback, version: ssl.TLSVersion | None = None
) -> tuple[TLSStream, TLSStream]:
    """A client and a server after their handshake."""
    left, right = raw_pair(kind)
    client, server = client_over(left, poller, version), server_over(right, poller)
    async with create_task_group() as tasks:
        tasks.start_soon(client.handshake)
        await server.handshake()

    return client, server


@dataclass(frozen=True)
class Files:
    """PEM files of the suite's CA; `client` has a client certificate and its key."""

    cacert: Path
    cert: Path
    key: Path
    client: Path


def files_in(directory: Path) -> Files:
    server, client = authority().issue_cert(*_NAMES), authority().issue_cert("peer@example.org")
    files = Files(*(directory / name for name in ("ca.pem", "cert.pem", "key.pem", "client.pem")))
    authority().cert_pem.write_to_path(str(files.cacert))
    server.cert_chain_pems[0].write_to_path(str(files.cert))
    server.private_key_pem.write_to_path(str(files.key))
    client.private_key_and_cert_chain_pem.write_to_path(str(files.client))
    return files
