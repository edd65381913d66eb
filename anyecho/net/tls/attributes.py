"""The `extra_attributes` of a TLS stream: anyio's `TLSAttribute`s, read from its session."""

from __future__ import annotations

__all__ = ("attributes_of",)

import ssl
from collections.abc import Callable, Mapping
from typing import Any

from anyio.streams.tls import TLSAttribute


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
