"""Options of the client and the load: the only place of their defaults and help texts."""

from __future__ import annotations

__all__ = ("ConnectOptions", "LoadOptions")

import math
from dataclasses import dataclass, field
from typing import Literal

from anyecho.errors import UsageError
from anyecho.net.sockets import SocketOptions
from anyecho.net.tls.contexts import TLSClientOptions
from anyecho.units import Seconds, Size
from anyecho.validation import check_types


@dataclass(frozen=True, kw_only=True)
class ConnectOptions:
    """How a client connects, and its timeouts. Times are seconds; infinite (``off``) is no limit."""

    timeout: Seconds = field(
        default=10.0,
        metadata={"help": "Give up after this long without progress: connecting, or while echo is outstanding."},
    )
    deadline: Seconds = field(default=math.inf, metadata={"help": "Maximum duration of each exchange as a whole."})
    proxy_header: Literal["off", "v1", "v2"] = field(
        default="off",
        metadata={"help": "Send a PROXY protocol header first, as a proxy for this client would."},
    )
    #: Use only IPv4 or IPv6; on the command line, -4 and -6.
    family: Literal[4, 6] | None = None
    socket: SocketOptions = field(default_factory=SocketOptions)
    tls: TLSClientOptions = field(default_factory=TLSClientOptions)
    #: Names of options set by environment variables. One without effect is a warning, never an error.
    from_environment: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("timeout", "deadline"):
            if not getattr(self, name) > 0:
                text = f"{name} must be more than 0 seconds, not {getattr(self, name)}; off (infinite) is no limit"
                raise UsageError(text, options=(name,))


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Number of connections and size of messages of a load."""

    connections: int = field(default=100, metadata={"help": "Connections, each with one outstanding message."})
    size: Size = field(default=64, metadata={"help": "Bytes per message."})
    #: Its `timeout` also limits the wait for the last replies; its `deadline` is for connecting only.
    connect: ConnectOptions = field(default_factory=ConnectOptions)

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("connections", "size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, not {getattr(self, name)}", options=(name,))
