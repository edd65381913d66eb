"""Find server options that have no effect on any listening address, with the reason."""

from __future__ import annotations

__all__ = ("check_faults", "check_options", "expected_header")

import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import TypeAlias

from anyecho.address import Address, StreamAddress, TCPAddress, UDPAddress
from anyecho.echo import echo
from anyecho.errors import UsageError, quoted
from anyecho.handlers import is_async
from anyecho.net.proxy.header import Versions
from anyecho.net.tls.contexts import TLSServerOptions
from anyecho.server.options import ServeOptions, require_tasks
from anyecho.validation import given_options, report_unused

logger = logging.getLogger("anyecho.server")

#: The requested address and the bound address; equal until the socket is open.
Bound: TypeAlias = tuple[Address, Address]

_TLS = frozenset(each.name for each in fields(TLSServerOptions))
#: If one of these were ignored, the server would serve unwanted peers, or without encryption.
_PROTECTIVE = _TLS | {"proxy_protocol", "proxy_trusted"}

_TCP = frozenset({"tcp_nodelay", "tcp_notsent_lowat", "tcp_user_timeout", "keepalive"})
_UDP = frozenset({"udp_rate", "udp_burst", "unsafe_udp"})
#: These have an effect without streams too, or `check_faults` reports them.
_NOT_FOR_STREAMS = _UDP | {"sndbuf", "rcvbuf", "faults", "seed", "processes", "shared_row"}


def expected_header(address: Address, options: ServeOptions) -> Versions | None:
    """Return the PROXY header versions that `address` expects; None if it expects no header."""
    mode = None if isinstance(address, UDPAddress) else address.proxy
    mode = mode or options.proxy_protocol
    return None if mode == "off" else mode


def check_options(options: ServeOptions, handler: object, addresses: Sequence[Bound]) -> None:
    """Raise `UsageError` for a handler, a fault or an option that cannot be used, or must not be without effect.

    The last are protective options and a missing `proxy_trusted`. All other options without effect are reported in
    one warning.
    """
    check_faults(options, addresses)
    _check_handler(handler, options, addresses)
    streams = [requested for requested, bound in addresses if not isinstance(bound, UDPAddress)]
    for requested in streams:
        if expected_header(requested, options) and not options.proxy_trusted:
            text = f"proxy_trusted is missing: {requested} expects a PROXY header, and no proxy is trusted"
            raise UsageError(text, options=("proxy_trusted",))

    # If each address has its own ?proxy=, ignoring the default drops no protection.
    protective = _PROTECTIVE - {"proxy_protocol"} if streams else _PROTECTIVE
    reasons = dict(_reasons(options, addresses))
    mentioned = "proxy_protocol", "udp_rate", "min_rate"
    report_unused(options, reasons, logger, protective=protective, mentioned=mentioned)


def check_faults(options: ServeOptions, addresses: Sequence[Bound]) -> None:
    """Raise `UsageError` for a fault that acts on no connection."""
    if any({"stream", "tls"} & {*fault.carriers} for fault in options.faults):
        require_tasks(options, "faults need", "faults")
    served = [
        {"datagram"} if isinstance(bound, UDPAddress) else {"stream", "tls"} if requested.tls else {"stream"}
        for requested, bound in addresses
    ]
    for fault in options.faults:
        if not any(carriers & {*fault.carriers} for carriers in served):
            missing = {"datagram": "UDP", "stream": "streams", "tls": "TLS"}[fault.carriers[0]]
            raise UsageError(f"{fault.name} has no effect: no address is for {missing}", options=("faults",))


def _check_handler(handler: object, options: ServeOptions, addresses: Sequence[Bound]) -> None:
    """Raise `UsageError` if `handler` is no coroutine function, or is not the echo and cannot be used."""
    if not is_async(handler):
        raise UsageError(f"handler must be an async function of a stream, not {quoted(handler)}")
    if handler is echo:
        return
    require_tasks(options, "handler needs", "handler")
    for requested, bound in addresses:
        if isinstance(bound, UDPAddress):
            text = f"handler is for streams of bytes: datagrams, as on {requested}, are only echoed"
            raise UsageError(text, options=("handler",))


def _reasons(options: ServeOptions, addresses: Sequence[Bound]) -> Iterator[tuple[str, str]]:
    streams = [each for each in addresses if not isinstance(each[1], UDPAddress)]
    requested = [each for each, _ in streams if isinstance(each, StreamAddress)]
    has_tcp = any(isinstance(bound, TCPAddress) for _, bound in streams)
    has_header = any(expected_header(each, options) for each in requested)
    no_stream, no_datagram = "every address is for UDP", "no address is for UDP"
    if not streams:
        yield from ((name, no_stream) for name in given_options(options) if name not in _NOT_FOR_STREAMS)
    if not has_tcp:
        yield from ((name, "no address is for TCP") for name in _TCP)
    if not any(each.tls for each in requested):
        hint = f": write {replace(requested[0], tls=True)}" if requested else ", and UDP has none"
        yield from ((name, f"no address is for TLS{hint}") for name in _TLS)
        yield "handshake_timeout", "no address is for TLS"
    if len(streams) == len(addresses):
        yield from ((name, no_datagram) for name in _UDP)
    elif options.udp_rate is None:
        yield "udp_burst", "udp_rate is off"
    if not has_header:
        off = "proxy_protocol is off" if options.proxy_protocol == "off" else "each address has ?proxy=off"
        why = f"no connection begins with a PROXY header: {off if streams else no_stream}"
        yield from (("proxy_trusted", why), ("proxy_timeout", why))
    if not has_tcp and not has_header:
        yield "max_connections_per_ip", "peers on Unix sockets have no IP address" if streams else no_stream
    if not any(each.proxy is None for each in requested):
        yield "proxy_protocol", "each address has its own ?proxy=" if streams else no_stream
    if not (streams and options.min_rate):
        yield "min_rate_window", "min_rate is off" if streams else no_stream
