"""Options of the client and the load: the only place of their defaults and help texts."""

from __future__ import annotations

__all__ = ("ConnectOptions", "LoadOptions")

from dataclasses import dataclass
from typing import Literal

from anyecho.errors import UsageError
from anyecho.net.sockets import SocketOptions
from anyecho.net.tls.contexts import TLSClientOptions
from anyecho.options import documented, option
from anyecho.units import Seconds, Size
from anyecho.validation import check_types, require_positive


@documented
@dataclass(frozen=True, kw_only=True)
class ConnectOptions:
    """How a client connects, and its timeouts in seconds.

    None is no limit (on the command line ``off``). Infinity is replaced by None.

    Raises:
        UsageError: a value has the wrong type or is out of range.
    """

    timeout: Seconds | None = option(
        10.0, "Give up after this long without progress: connecting, or while echo is outstanding."
    )
    deadline: Seconds | None = option(None, "Maximum duration of each exchange as a whole.")
    proxy_header: Literal["off", "v1", "v2"] = option(
        "off", "Send a PROXY protocol header first, as a proxy for this client would."
    )
    family: Literal[4, 6] | None = option(
        None, "Use only IPv4 or IPv6; on the command line, -4 and -6.", flag=False
    )
    socket: SocketOptions = option(SocketOptions(), "`SocketOptions` of the connection.", flag=False)
    tls: TLSClientOptions = option(TLSClientOptions(), "`TLSClientOptions`, for an address over TLS.", flag=False)
    from_environment: tuple[str, ...] = option(
        (), "Options set by variables: one without effect is a warning, never an error.", flag=False
    )

    def __post_init__(self) -> None:
        check_types(self)
        require_positive(self, ("timeout", "deadline"))


@documented
@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Number of connections and size of messages of a load.

    Raises:
        UsageError: a value has the wrong type or is out of range.
    """

    connections: int = option(100, "Connections, each with one outstanding message.")
    size: Size = option(64, "Bytes per message.")
    connect: ConnectOptions = option(
        ConnectOptions(),
        "Its `timeout` also limits the wait for the last replies; its `deadline`, connecting only.",
        flag=False,
    )

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("connections", "size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, not {getattr(self, name)}", options=(name,))
