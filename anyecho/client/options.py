"""Options of the client: the only place of their defaults and help texts, and their effect on an address."""

from __future__ import annotations

__all__ = ("ConnectOptions", "TransportOptions", "check_options")

import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

from anyecho.address import Address, FDAddress, TCPAddress, UDPAddress
from anyecho.errors import UsageError
from anyecho.net.sockets import SocketOptions
from anyecho.net.tls.contexts import TLSClientOptions
from anyecho.options import option, option_group
from anyecho.units import Seconds
from anyecho.validation import check_types, report_unused, require_positive

logger = logging.getLogger("anyecho.client")

_TLS = tuple(each.name for each in fields(TLSClientOptions))
_TCP = ("tcp_nodelay", "tcp_notsent_lowat", "tcp_user_timeout", "keepalive")
#: Without these, bytes are sent in the clear, to an unverified server, or without the client's certificate.
_PROTECTIVE = frozenset((*_TLS, "proxy_header"))


@dataclass(frozen=True, kw_only=True)
class TransportOptions:
    """How a connection is set up: the options that every verb of a client has."""

    proxy_header: Literal["off", "v1", "v2"] = option(
        "off", "Send a PROXY protocol header first, as a proxy for this client would.", group="Connecting"
    )
    family: Literal[4, 6] | None = option(
        None, "Use only IPv4 or IPv6; on the command line, -4 and -6.", flag=False
    )
    socket: SocketOptions = option(SocketOptions(), "`SocketOptions` of the connection.", flag=False)
    tls: TLSClientOptions = option(TLSClientOptions(), "`TLSClientOptions`, for an address over TLS.", flag=False)
    from_environment: tuple[str, ...] = option(
        (), "Options set by variables: one without effect is a warning, never an error.", flag=False
    )


@option_group("Connecting")
@dataclass(frozen=True, kw_only=True)
class ConnectOptions(TransportOptions):
    """How a client connects, and its timeouts in seconds.

    None is no limit (on the command line ``off``). Infinity is replaced by None.

    Raises:
        UsageError: a value has the wrong type or is out of range.
    """

    timeout: Seconds | None = option(
        10.0, "Give up after this long without progress: connecting, or while echo is outstanding."
    )
    deadline: Seconds | None = option(
        None, "Maximum duration of connecting, and of each exchange as a whole; in bench, of connecting only."
    )

    def __post_init__(self) -> None:
        check_types(self)
        require_positive(self, ("timeout", "deadline"))


def check_options(options: ConnectOptions, address: Address) -> None:
    """Raise `UsageError` if a protective option has no effect on `address`, or if `address` is for servers only.

    Other options without effect are logged, in one line.
    """
    if isinstance(address, FDAddress):
        raise UsageError(f"cannot connect to {address}: a descriptor is for servers")

    reasons = dict(_reasons(options, address))
    report_unused(options, reasons, logger, protective=_PROTECTIVE, mentioned=("insecure", "proxy_header"))


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
