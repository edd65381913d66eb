"""Options of `ping`: the only place of their defaults and help texts. The letters are those of ping(8)."""

from __future__ import annotations

__all__ = ("PingOptions",)

import math
from dataclasses import dataclass, fields

from anyecho.address import Address, UDPAddress
from anyecho.client.options import ConnectOptions, TransportOptions
from anyecho.errors import UsageError
from anyecho.net.udp.stream import DATAGRAM_MAX
from anyecho.options import option, option_group
from anyecho.units import Seconds, Size
from anyecho.validation import check_types, require_min, require_positive

#: A probe is kept in memory until its echo is back.
_SIZE_MAX = 1 << 30


@option_group("Options")
@dataclass(frozen=True, kw_only=True)
class PingOptions(TransportOptions):
    """Which probes are sent, and for how long each is waited for.

    None is no limit (on the command line ``off``). Infinity is replaced by None.

    Raises:
        UsageError: a value has the wrong type or is out of range.
    """

    count: int | None = option(
        None, "Send this many probes; with --deadline, get this many replies.", name=("--count", "-c")
    )
    interval: Seconds = option(
        1.0,
        "Time between two probes; 0 sends the next when the last is answered or lost.",
        name=("--interval", "-i"),
    )
    size: Size = option(56, "Bytes per probe; 0 only over UDP.", name=("--size", "-s"))
    timeout: Seconds | None = option(
        10.0, "A probe without a reply after this long is lost; limits connecting too.", name=("--timeout", "-W")
    )
    deadline: Seconds | None = option(None, "End after this long.", name=("--deadline", "-w"))
    connect: bool = option(
        False, "Open a connection for each probe, and time each step: name, connect, TLS, echo.", negative=()
    )

    def __post_init__(self) -> None:
        check_types(self)
        require_positive(self, ("timeout", "deadline"))
        require_min(1, self, ("count",))
        if not 0 <= self.interval < math.inf:
            raise UsageError(f"interval must be 0 or more and finite, not {self.interval}", options=("interval",))
        if not 0 <= self.size <= _SIZE_MAX:
            raise UsageError(f"size must be 0 to {_SIZE_MAX}, not {self.size}", options=("size",))

    def check_for(self, address: Address) -> None:
        """Raise `UsageError` if a probe of this size or kind cannot be sent to `address`."""
        if not isinstance(address, UDPAddress):
            if self.size == 0:
                raise UsageError("size must be 1 or more: a stream has no empty messages", options=("size",))
        elif self.size > DATAGRAM_MAX:
            text = f"size must be at most {DATAGRAM_MAX}, the largest datagram, not {self.size}"
            raise UsageError(text, options=("size",))
        elif self.connect:
            raise UsageError(f"connect has no effect: {address} has no connections", options=("connect",))

    def connect_options(self) -> ConnectOptions:
        """Return the options of each connection, with `timeout` as its limit."""
        transport = {each.name: getattr(self, each.name) for each in fields(TransportOptions)}
        return ConnectOptions(timeout=self.timeout, **transport)
