"""The only copy of every default of the server, and of the line that explains it."""

from __future__ import annotations

__all__ = ("ServeOptions",)

from dataclasses import dataclass, field
from typing import Literal

from anyecho.errors import UsageError
from anyecho.net.sockets import SocketOptions
from anyecho.units import Rate, Seconds


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
    idle_timeout: Seconds = field(
        default=600.0, metadata={"help": "Close a connection on which no byte has moved for this long."}
    )
    graceful_timeout: Seconds = field(
        default=10.0, metadata={"help": "On SIGTERM or SIGINT, go on echoing this long for those still connected."}
    )
    linger: Seconds = field(
        default=2.0,
        metadata={"help": "When closing on a peer that still sends, read on this long so that it gets its echo."},
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

    def __post_init__(self) -> None:
        if self.max_connections < 1:
            raise UsageError(f"max_connections must be 1 or more, not {self.max_connections}")
        if not 0 <= self.backlog < 2**31:
            raise UsageError(f"backlog must be 0 or more, not {self.backlog}")
        for name in ("idle_timeout", "graceful_timeout", "linger"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} must be 0 or more seconds, not {getattr(self, name)}")
        if not self.udp_rate > 0:
            raise UsageError(f"udp_rate must be more than 0 per second, not {self.udp_rate}")
        if self.udp_burst < 1:
            raise UsageError(f"udp_burst must be 1 or more, not {self.udp_burst}")
        if self.idle_timeout == 0:
            raise UsageError("idle_timeout must be more than 0 seconds; off (infinite) is no limit")
