"""The options of the server, with every default and its help text."""

from __future__ import annotations

__all__ = ("ServeOptions", "require_tasks")

from dataclasses import dataclass
from typing import Literal

from anyecho.address import ProxyMode
from anyecho.errors import UsageError
from anyecho.faults.fault import Fault
from anyecho.net.proxy.trust import TrustedNetworks
from anyecho.net.shared_counts import Row
from anyecho.net.sockets import SocketOptions
from anyecho.net.tls.contexts import TLSServerOptions
from anyecho.options import option, option_group
from anyecho.units import Rate, Seconds, Size
from anyecho.validation import check_types, require_min, require_positive

_MORE_THAN_0 = (
    *("max_connections_per_ip", "max_bytes", "idle_timeout", "write_timeout", "max_duration"),
    *("min_rate", "min_rate_window", "rate_limit", "handshake_timeout", "udp_rate"),
)


@option_group("Limits")
@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a server treats its peers. Times are seconds, sizes bytes, rates per second.

    None is no limit, for every option that accepts it (on the command line ``off``). Infinity is replaced by None;
    so is 0 in `max_connections_per_ip`, `max_bytes` and `min_rate`.

    Raises:
        UsageError: a value has the wrong type or is out of range, or two options exclude each other.
    """

    engine: Literal["auto", "tasks", "events"] = option(
        "auto",
        "tasks: one per connection; events: callbacks in a single task; auto: events where possible.",
        group="Listening",
    )
    max_connections: int = option(
        10_000,
        "Maximum concurrent connections, at most the descriptor limit - 64; more wait in the backlog.",
        group="Options",
    )
    over_limit: Literal["wait", "close"] = option(
        "wait",
        "At --max-connections, new connections wait in the backlog, or are accepted and closed.",
        group="Listening",
    )
    max_connections_per_ip: int | None = option(None, "Maximum connections per client IP (per /64 for IPv6).")
    idle_timeout: Seconds | None = option(
        600.0, "Close a connection on which no byte moves for this long.", group="Options"
    )
    write_timeout: Seconds | None = option(
        60.0, "Close a connection if its peer takes none of the pending echo for this long."
    )
    max_duration: Seconds | None = option(None, "Close a connection after this long, even if it is active.")
    max_bytes: Size | None = option(
        None, "Close a connection that receives more than this, once this much is echoed."
    )
    min_rate: Rate | None = option(None, "Close a connection that echoes fewer bytes per second on average.")
    min_rate_window: Seconds | None = option(30.0, "Time over which --min-rate is averaged.")
    rate_limit: Rate | None = option(
        None, "Maximum bytes echoed per second on each connection; needs the tasks engine."
    )
    graceful_timeout: Seconds | None = option(
        10.0, "In a drain (SIGTERM, SIGINT), keep echoing on open connections for this long."
    )
    linger: Seconds | None = option(
        2.0, "On closing while the peer still sends, read this long: a reset would destroy the echo."
    )
    proxy_protocol: ProxyMode = option(
        "off", "Expect a PROXY protocol header on each connection; require: v1 or v2.", group="PROXY protocol"
    )
    proxy_trusted: tuple[str, ...] = option(
        (),
        "Network of trusted proxies; unix: for Unix sockets; repeatable.",
        metavar="CIDR",
        group="PROXY protocol",
    )
    proxy_timeout: Seconds | None = option(
        5.0, "Close a connection if its PROXY header is incomplete after this long.", group="PROXY protocol"
    )
    # Other servers allow 30 to 60 s. An echo client that needs more than 10 s has no use for the echo.
    handshake_timeout: Seconds | None = option(
        10.0, "Close a connection if its TLS handshake is incomplete after this long.", group="TLS"
    )
    backlog: int = option(4096, "Length of each accept backlog (listen(2)).", group="Listening")
    udp_rate: Rate | None = option(
        100.0, "Datagrams per second answered to one source (IPv6: one /64); to all, 100 times that.", group="UDP"
    )
    udp_burst: int = option(200, "Datagrams answered to one source in a burst above --udp-rate.", group="UDP")
    unsafe_udp: bool = option(
        False, "For labs: answer source ports below 1024 too, and no rate limit over all sources.", group="UDP"
    )
    faults: tuple[Fault, ...] = option(
        (), "Faults of `anyecho.faults`, for the connections that they choose.", flag=False
    )
    seed: int | None = option(
        None, "Seed of every decision of the faults; None: a new one, which is logged.", flag=False
    )
    processes: int = option(
        1, "Processes that accept on the same sockets: the rate over all UDP sources is divided by it.", flag=False
    )
    shared_row: Row | None = option(
        None, "Where this process counts its connections, for other `processes` on the same sockets.", flag=False
    )
    socket: SocketOptions = option(SocketOptions(), "`SocketOptions` of every listener and connection.", flag=False)
    tls: TLSServerOptions = option(TLSServerOptions(), "`TLSServerOptions` of the addresses over TLS.", flag=False)
    from_environment: tuple[str, ...] = option(
        (), "Options set by variables: one without effect is a warning, never an error.", flag=False
    )

    def __post_init__(self) -> None:
        check_types(self, zero_is_none=("max_connections_per_ip", "max_bytes", "min_rate"))
        require_min(1, self, ("max_connections", "udp_burst", "processes"))
        if not 0 <= self.backlog < 2**31:
            raise UsageError(f"backlog must be 0 or more, not {self.backlog}", options=("backlog",))
        require_min(0, self, ("graceful_timeout", "linger", "proxy_timeout"))
        require_positive(self, _MORE_THAN_0)
        if self.rate_limit is not None:
            require_tasks(self, "rate_limit needs", "rate_limit")
        TrustedNetworks.parse(self.proxy_trusted)


def require_tasks(options: ServeOptions, what: str, *names: str) -> None:
    """Raise `UsageError` about the options `names` if the engine has no tasks. `what` begins it: "faults need"."""
    if options.engine == "events":
        text = f"{what} a task for each connection: engine must be auto or tasks"
        raise UsageError(text, options=(*names, "engine"))
