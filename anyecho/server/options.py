"""The options of the server, with every default and its help text."""

from __future__ import annotations

__all__ = ("ServeOptions",)

import math
from dataclasses import dataclass, field
from typing import Literal

from anyecho.address import ProxyMode
from anyecho.errors import UsageError
from anyecho.net.proxy.trust import TrustedNetworks
from anyecho.net.sockets import SocketOptions
from anyecho.net.tls.contexts import TLSServerOptions
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
        metadata={
            "help": "tasks: one per connection; events: callbacks in a single task; auto: events where possible."
        },
    )
    max_connections: int = field(
        default=10_000,
        metadata={
            "help": "Maximum concurrent connections, at most the descriptor limit - 64; more wait in the backlog."
        },
    )
    over_limit: Literal["wait", "close"] = field(
        default="wait",
        metadata={"help": "At --max-connections, new connections wait in the backlog, or are accepted and closed."},
    )
    max_connections_per_ip: int = field(
        default=0,
        metadata={"help": "Maximum connections per client IP (per /64 for IPv6); 0: no limit."},
    )
    idle_timeout: Seconds = field(
        default=600.0, metadata={"help": "Close a connection on which no byte moves for this long."}
    )
    write_timeout: Seconds = field(
        default=60.0,
        metadata={"help": "Close a connection if its peer takes none of the pending echo for this long."},
    )
    max_duration: Seconds = field(
        default=math.inf, metadata={"help": "Close a connection after this long, even if it is active."}
    )
    max_bytes: Size = field(
        default=0,
        metadata={
            "help": "Close a connection that receives more than this, once this much is echoed; 0: no limit."
        },
    )
    min_rate: Rate = field(
        default=0.0,
        metadata={"help": "Close a connection that echoes fewer bytes per second on average; 0: no limit."},
    )
    min_rate_window: Seconds = field(default=30.0, metadata={"help": "Time over which --min-rate is averaged."})
    rate_limit: Rate = field(
        default=math.inf,
        metadata={"help": "Maximum bytes echoed per second on each connection; needs the tasks engine."},
    )
    graceful_timeout: Seconds = field(
        default=10.0, metadata={"help": "On SIGTERM or SIGINT, keep echoing on open connections for this long."}
    )
    linger: Seconds = field(
        default=2.0,
        metadata={"help": "On closing while the peer still sends, read this long: a reset would destroy the echo."},
    )
    proxy_protocol: ProxyMode = field(
        default="off",
        metadata={"help": "Expect a PROXY protocol header on each connection; require: v1 or v2."},
    )
    proxy_trusted: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Network of trusted proxies; unix: for Unix sockets; repeatable.",
            "metavar": "CIDR",
        },
    )
    proxy_timeout: Seconds = field(
        default=5.0, metadata={"help": "Close a connection if its PROXY header is incomplete after this long."}
    )
    handshake_timeout: Seconds = field(
        # Other servers allow 30 to 60 s. An echo client that needs more than 10 s has no use for the echo.
        default=10.0,
        metadata={"help": "Close a connection if its TLS handshake is incomplete after this long."},
    )
    backlog: int = field(default=4096, metadata={"help": "Length of each accept backlog (listen(2))."})
    udp_rate: Rate = field(
        default=100.0,
        metadata={"help": "Datagrams per second answered to one source (IPv6: one /64); to all, 100 times that."},
    )
    udp_burst: int = field(
        default=200, metadata={"help": "Datagrams answered to one source in a burst above --udp-rate."}
    )
    unsafe_udp: bool = field(
        default=False,
        metadata={"help": "For labs: answer source ports below 1024 too, and no rate limit over all sources."},
    )
    socket: SocketOptions = field(default_factory=SocketOptions)
    tls: TLSServerOptions = field(default_factory=TLSServerOptions)
    #: The options set by the environment. If one has no effect, it is a warning, never an error.
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
