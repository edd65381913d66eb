"""Options of the client: the only place of their defaults and help texts."""

from __future__ import annotations

__all__ = ("ConnectOptions", "TransportOptions")

from dataclasses import dataclass
from typing import Literal

from anyecho.net.sockets import SocketOptions
from anyecho.net.tls.contexts import TLSClientOptions
from anyecho.options import option, option_group
from anyecho.units import Seconds
from anyecho.validation import check_types, require_positive


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
