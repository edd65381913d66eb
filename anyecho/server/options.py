"""The only copy of every default of the server, and of the line that explains it."""

from __future__ import annotations

__all__ = ("ServeOptions",)

import math
from dataclasses import dataclass, field
from typing import Literal

from anyecho.address import ProxyMode
from anyecho.errors import UsageError
from anyecho.net.proxied import TrustedNetworks
from anyecho.net.sockets import SocketOptions
from anyecho.net.tls_contexts import TLSServerOptions
from anyecho.units import Rate, Seconds, Size
from anyecho.validation import check_types

_MORE_THAN_0 = (
    *("idle_timeout", "write_timeout", "max_duration", "min_rate_window", "handshake_timeout"),
    *("rate_limit", "udp_rate"),
)


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a server treats its peers. Times are seconds; infinite (``off``) is no limit."""

    engine: Literal["auto", "tasks", "events"] = field(
        default="auto",
        metadata={"help": "One task per connection, or all in one; auto takes events where nothing needs a task."},
    )
    max_connections: int = field(
        default=10_000,
        metadata={
            "help": "Accept no more at a time; others wait in the backlog. Never more than descriptors - 64."
        },
    )
    over_limit: Literal["wait", "close"] = field(
        default="wait",
        metadata={"help": "Those over --max-connections wait in the backlog, or are accepted and closed at once."},
    )
    max_connections_per_ip: int = field(
        default=0,
        metadata={"help": "Close who comes when so many of its address (IPv6: of its /64) are there; 0: no limit."},
    )
    idle_timeout: Seconds = field(
        default=600.0, metadata={"help": "Close a connection on which no byte has moved for this long."}
    )
    write_timeout: Seconds = field(
        default=60.0,
        metadata={"help": "Close a peer that takes none of the echo it is owed for this long."},
    )
    max_duration: Seconds = field(
        default=math.inf, metadata={"help": "Close a connection after this long, whatever moves."}
    )
    max_bytes: Size = field(
        default=0, metadata={"help": "Close a peer that sends more than this, which it gets back; 0: no limit."}
    )
    min_rate: Rate = field(
        default=0.0,
        metadata={"help": "Close a connection that echoes fewer bytes a second, on average; 0: no limit."},
    )
    min_rate_window: Seconds = field(default=30.0, metadata={"help": "The time over which --min-rate is averaged."})
    rate_limit: Rate = field(
        default=math.inf, metadata={"help": "Echo no more bytes a second on any one connection; needs a task each."}
    )
    graceful_timeout: Seconds = field(
        default=10.0, metadata={"help": "On SIGTERM or SIGINT, go on echoing this long for those still connected."}
    )
    linger: Seconds = field(
        default=2.0,
        metadata={"help": "When closing on a peer that still sends, read on this long so that it gets its echo."},
    )
    proxy_protocol: ProxyMode = field(
        default="off",
        metadata={"help": "Connections begin with a header of the PROXY protocol; require is v1 or v2."},
    )
    proxy_trusted: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Take that header from this network only, unix: being Unix sockets; repeatable.",
            "metavar": "CIDR",
        },
    )
    proxy_timeout: Seconds = field(
        default=5.0, metadata={"help": "Close a connection whose header is not complete after this long."}
    )
    handshake_timeout: Seconds = field(
        # Others allow 30 to 60 s; an echo client that needs more than 10 has no use for the echo either.
        default=10.0,
        metadata={"help": "Close a connection whose TLS handshake is not over after this long."},
    )
    backlog: int = field(default=4096, metadata={"help": "Connections the kernel may hold ready to be accepted."})
    udp_rate: Rate = field(
        default=100.0,
        metadata={"help": "Datagrams per second answered to one source (IPv6: one /64); to all, 100 times that."},
    )
    udp_burst: int = field(
        default=200, metadata={"help": "Datagrams answered to one source at once, before --udp-rate holds."}
    )
    unsafe_udp: bool = field(
        default=False,
        metadata={"help": "For labs: answer source ports below 1024 too, and to all together at any rate."},
    )
    socket: SocketOptions = field(default_factory=SocketOptions)
    tls: TLSServerOptions = field(default_factory=TLSServerOptions)
    #: The options that the environment has set. One of them that cannot act is a warning, and never an error.
    from_environment: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("max_connections", "udp_burst"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, not {getattr(self, name)}", options=(name,))
        if not 0 <= self.backlog < 2**31:
            raise UsageError(f"backlog must be 0 or more, not {self.backlog}", options=("backlog",))
        for name in ("max_connections_per_ip", "max_bytes", "min_rate"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                text = f"{name} must be 0 (no limit) or more, and finite, not {value}"
                raise UsageError(text, options=(name,))
        for name in ("graceful_timeout", "linger", "proxy_timeout"):
            if not getattr(self, name) >= 0:
                text = f"{name} must be 0 or more seconds, not {getattr(self, name)}"
                raise UsageError(text, options=(name,))
        for name in _MORE_THAN_0:
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} must be more than 0; off (infinite) is no limit", options=(name,))
        if self.engine == "events" and not math.isinf(self.rate_limit):
            text = "rate_limit needs a task for each connection: engine must be auto or tasks"
            raise UsageError(text, options=("rate_limit", "engine"))
        TrustedNetworks.parse(self.proxy_trusted)
