"""Servers over TLS with the certificate of the suite, and clients whose records a test sees."""

from __future__ import annotations

__all__ = ("TLS", "options", "shake_hands")

import ssl
from typing import Any

from anyio import fail_after

from anyecho.address import Address
from anyecho.net.poller import Fallback
from anyecho.net.tls.contexts import TLSServerOptions
from anyecho.net.tls.stream import TLSStream
from anyecho.server.options import ServeOptions
from tests.support.certificates import Files, client_over
from tests.support.peers import SOON, dial

TLS = "tls://127.0.0.1:0"


def options(files: Files, **others: Any) -> ServeOptions:
    shown = TLSServerOptions(ssl_certfile=files.cert, ssl_keyfile=files.key)
    given: dict[str, Any] = {"linger": 0.3, "tls": shown} | others
    return ServeOptions(**given)


async def shake_hands(address: Address, version: ssl.TLSVersion | None = None) -> TLSStream:
    stream = client_over(dial(address), Fallback(), version)
    with fail_after(SOON):
        await stream.handshake()

    return stream
