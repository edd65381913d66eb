"""Which options of a server cannot act on the addresses it listens on, and why not."""

from __future__ import annotations

__all__ = ("check_options", "expected_header")

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import TypeAlias

from anyecho.address import Address, TCPAddress, UDPAddress
from anyecho.errors import UsageError
from anyecho.net.proxy_protocol import Versions
from anyecho.net.tls_contexts import TLSServerOptions
from anyecho.server.options import ServeOptions
from anyecho.unused import report_unused
from anyecho.validation import given_options

logger = logging.getLogger("anyecho.server")

#: An address as requested, and as the socket is bound; the same where no socket is open yet.
Bound: TypeAlias = tuple[Address, Address]

_TLS = frozenset(each.name for each in fields(TLSServerOptions))
_PROXY = frozenset({"proxy_protocol", "proxy_trusted"})
#: Without these, peers are served that the caller did not mean to serve, or in the clear.
_PROTECTIVE = _TLS | _PROXY

_UDP = frozenset({"udp_rate", "unsafe_udp"})
_TCP = frozenset({"tcp_nodelay", "tcp_notsent_lowat", "tcp_user_timeout", "keepalive"})
_ANY = frozenset({"sndbuf", "rcvbuf"})
#: These need more than an address of a kind.
_OWN_REASON = frozenset(
    {
        *("handshake_timeout", "max_connections_per_ip", "min_rate_window"),
        *("proxy_protocol", "proxy_timeout", "proxy_trusted", "udp_burst"),
    }
)


def expected_header(address: Address, options: ServeOptions) -> Versions | None:
    """The versions of the PROXY header that begins a connection to `address`; None where there is no header."""
    mode = None if isinstance(address, UDPAddress) else address.proxy
    mode = mode or options.proxy_protocol
    return None if mode == "off" else mode


def check_options(options: ServeOptions, addresses: Sequence[Bound]) -> None:
    """Raise `UsageError` for protective options that cannot act on `addresses`, and for a missing `proxy_trusted`.

    Other options that cannot act are one line of the log.
    """
    if not options.proxy_trusted:
        for requested, bound in addresses:
            if not isinstance(bound, UDPAddress) and expected_header(requested, options):
                text = f"proxy_trusted is missing: {requested} expects a PROXY header, and no proxy is trusted"
                raise UsageError(text, options=("proxy_trusted",))

    reasons = dict(_reasons(options, addresses))
    report_unused(
        {name: reasons[_kind(name)] for name in given_options(options) if _kind(name) in reasons},
        logger,
        # Where every address says for itself what it expects, the default of all drops nothing.
        protective=_PROTECTIVE - {"proxy_protocol"} if "stream" not in reasons else _PROTECTIVE,
        from_environment=options.from_environment,
        mentioned=("proxy_protocol", "udp_rate", "min_rate"),
    )


def _kind(option: str) -> str:
    """What `option` needs: a key of `_reasons`."""
    for kind, names in (("tls", _TLS), ("udp", _UDP), ("tcp", _TCP), ("any", _ANY)):
        if option in names:
            return kind

    return option if option in _OWN_REASON else "stream"


def _reasons(options: ServeOptions, addresses: Sequence[Bound]) -> Iterator[tuple[str, str]]:
    streams = [bound for bound in addresses if not isinstance(bound[1], UDPAddress)]
    has_tcp = any(isinstance(bound, TCPAddress) for _, bound in streams)
    has_header = any(expected_header(requested, options) for requested, _ in streams)
    no_stream, no_datagram = "every address is for UDP", "no address is for UDP"
    if not streams:
        yield "stream", no_stream
    if not has_tcp:
        yield "tcp", "no address is for TCP"
    if not any(requested.tls for requested, _ in streams):
        yield "tls", f"no address is for TLS{_over_tls(streams)}"
        yield "handshake_timeout", "no address is for TLS"
    if len(streams) == len(addresses):
        yield "udp", no_datagram
        yield "udp_burst", no_datagram
    elif math.isinf(options.udp_rate):
        yield "udp_burst", "udp_rate is off"
    if not has_header:
        off = "proxy_protocol is off" if options.proxy_protocol == "off" else "each address has ?proxy=off"
        hint = off if streams else no_stream
        yield "proxy_trusted", f"no connection begins with a PROXY header: {hint}"
        yield "proxy_timeout", f"no connection begins with a PROXY header: {hint}"
    if not has_tcp and not has_header:
        yield "max_connections_per_ip", "peers on Unix sockets have no IP address" if streams else no_stream
    if not any(getattr(requested, "proxy", None) is None for requested, _ in streams):
        yield "proxy_protocol", "each address has its own ?proxy=" if streams else no_stream
    if not (streams and options.min_rate):
        yield "min_rate_window", "min_rate is 0" if streams else no_stream


def _over_tls(streams: Sequence[Bound]) -> str:
    """What to write for the first of them instead."""
    for requested, _ in streams:
        if not isinstance(requested, UDPAddress):
            return f": write {replace(requested, tls=True)}"

    return ", and UDP has none"
