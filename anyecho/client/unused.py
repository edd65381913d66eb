"""Report client options that have no effect on the address to connect to."""

from __future__ import annotations

__all__ = ("check_options",)

import logging
from collections.abc import Iterator
from dataclasses import fields, replace

from anyecho.address import Address, FDAddress, TCPAddress, UDPAddress
from anyecho.client.options import ConnectOptions
from anyecho.errors import UsageError
from anyecho.net.tls.contexts import TLSClientOptions
from anyecho.validation import report_unused

logger = logging.getLogger("anyecho.client")

_TLS = tuple(each.name for each in fields(TLSClientOptions))
_TCP = ("tcp_nodelay", "tcp_notsent_lowat", "tcp_user_timeout", "keepalive")
#: Without these, bytes are sent in the clear, to an unverified server, or without the client's certificate.
_PROTECTIVE = frozenset((*_TLS, "proxy_header"))


def check_options(options: ConnectOptions, address: Address) -> None:
    """Raise `UsageError` if a protective option has no effect on `address`, or if `address` is for servers only.

    Other options without effect are logged, in one line.
    """
    if isinstance(address, FDAddress):
        raise UsageError(f"cannot connect to {address}: a descriptor is for servers")

    report_unused(
        options,
        dict(_reasons(options, address)),
        logger,
        protective=_PROTECTIVE,
        mentioned=("insecure", "proxy_header"),
    )


def _reasons(options: ConnectOptions, address: Address) -> Iterator[tuple[str, str]]:
    if isinstance(address, UDPAddress):
        yield from ((name, f"{address} has no TLS") for name in _TLS)
        yield "proxy_header", "a datagram has no PROXY header"
    elif not address.tls:
        yield from ((name, f"{address} is not over TLS: write {replace(address, tls=True)}") for name in _TLS)
    elif options.tls.insecure:
        yield "cacert", "insecure accepts any certificate"
    if not isinstance(address, TCPAddress | UDPAddress):
        yield "family", f"{address} has no IP address"
    if not isinstance(address, TCPAddress):
        yield from ((name, f"{address} is not TCP") for name in _TCP)
    if getattr(address, "proxy", None) not in (None, "off") and options.proxy_header == "off":
        yield "?proxy=", "it is for servers: a client sends a header with proxy_header"
