"""What is known of a TLS session: the `extra_attributes` of a stream, and the fields of a log line."""

from __future__ import annotations

__all__ = ("attributes_of", "keep_sni", "session_fields")

import ssl
from collections.abc import Callable, Mapping
from typing import Any

from anyio.streams.tls import TLSAttribute


class _ServerSession(ssl.SSLObject):
    """A session of a server. `ssl` does not keep the server name that a client has requested (SNI)."""

    sni: str | None = None


def keep_sni(context: ssl.SSLContext) -> None:
    """Let each session of the server-side `context` keep the server name that its client requests."""
    context.sslobject_class = _ServerSession
    context.sni_callback = _store_sni


def _store_sni(tls: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
    if isinstance(tls, _ServerSession):
        tls.sni = name


def session_fields(tls: ssl.SSLObject) -> dict[str, str]:
    """Return what is known of version, cipher and server name; nothing before a handshake."""
    cipher = tls.cipher()
    values = {
        "tls": tls.version(),
        "cipher": cipher and cipher[0],
        "sni": tls.sni if isinstance(tls, _ServerSession) else None,
    }
    return {name: value for name, value in values.items() if value is not None}


def attributes_of(tls: ssl.SSLObject) -> Mapping[Any, Callable[[], Any]]:
    return {
        TLSAttribute.alpn_protocol: tls.selected_alpn_protocol,
        TLSAttribute.channel_binding_tls_unique: tls.get_channel_binding,
        TLSAttribute.cipher: tls.cipher,
        TLSAttribute.peer_certificate: lambda: tls.getpeercert(False),
        TLSAttribute.peer_certificate_binary: lambda: tls.getpeercert(True),
        TLSAttribute.server_side: lambda: tls.server_side,
        TLSAttribute.shared_ciphers: lambda: tls.shared_ciphers() if tls.server_side else None,
        TLSAttribute.ssl_object: lambda: tls,
        TLSAttribute.standard_compatible: lambda: True,
        TLSAttribute.tls_version: tls.version,
    }
