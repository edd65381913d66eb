"""UDP echo: policy and guards. Whose datagrams are answered, and how many of them.

A datagram's source can be forged, and an answer to a forged one hits a stranger, or starts two echo services
talking to each other for ever (CVE-2024-2169). So no answer goes where no client lives, each source has a bucket
of tokens, and so have all together.

`ServeOptions.unsafe_udp` lifts two of the guards, for labs: source ports 1 to 1023 are answered, and all sources
together may have what each of them may. A source's own rate has an option of its own. The others stay: nobody
could get such an answer, and one to our own port is a loop.
"""

from __future__ import annotations

__all__ = ("SourceGuard", "UDPEcho")

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from anyio import create_task_group

from anyecho.net.datagram_counts import DatagramCounts, Source
from anyecho.net.datagrams import Reflector
from anyecho.net.names import source_key
from anyecho.net.poller import Fallback, Poller
from anyecho.server.options import ServeOptions
from anyecho.units import format_rate

if TYPE_CHECKING:
    import socket

logger = logging.getLogger("anyecho.server")

#: Ports of other services, as inetd and xinetd have it; a client's is never one of them.
_PRIVILEGED = 1024
#: All sources together may have what so many may have each.
_SOURCES_AT_ONCE = 100
#: Sources remembered, in two halves: when the newer is full, the older goes. 3 MiB.
_TABLE_SIZE = 16384
#: Seconds between two tokens at most: an infinity would compare as no limit at all.
_LONGEST = 1e9
#: First numbers of IPv4 addresses that are groups (RFC 5771); behind them nobody lives either (RFC 1112).
_MULTICAST = frozenset(map(str, range(224, 256)))
#: Log lines at once, and seconds for one more: sources are free to whoever forges them.
_LINES = 10
_LINE_EVERY = 10.0

_UNANSWERABLE = "nobody could answer it"
_WHY = {
    "port_0": _UNANSWERABLE,
    "port_below_1024": "no client's port is below 1024 (--unsafe-udp answers it)",
    "own_port": "its port is one of ours, and an answer might come back for ever (send from another)",
    "multicast": _UNANSWERABLE,
    "broadcast": "no answer goes to many, nor do many answer (send to, and from, one address)",
    "unspecified": _UNANSWERABLE,
    "rate": "it sends more than {each} (--udp-rate, --udp-burst)",
    "total_rate": "all together send more than {all} (a hundred times --udp-rate; --unsafe-udp lifts it)",
}


class Bucket:
    """Holds `burst` tokens at most, and is refilled with `rate` a second."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._filled_at = -math.inf
        #: Whoever finds one may take it away.
        self.tokens = burst

    def refill(self, now: float) -> None:
        if now > self._filled_at:
            self.tokens = min(self._burst, self.tokens + (now - self._filled_at) * self._rate)
            self._filled_at = now


class SourceGuard:
    """Admits sources to be answered; counts in `dropped` those it does not, and tells the log of each once."""

    def __init__(
        self,
        options: ServeOptions,
        own_ports: Collection[int],
        dropped: Counter[str],
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._options = options
        self._own_ports = frozenset(own_ports)
        self._dropped = dropped
        self._clock = clock
        self._now = clock()
        self._least_port = 1 if options.unsafe_udp else _PRIVILEGED
        # A source's bucket is one number: the time at which it will be full again (GCRA, ITU-T I.371). A thousandth
        # of a token forgives what adding up floats loses.
        self._period = min(1 / options.udp_rate, _LONGEST)
        self._slack = (options.udp_burst - 0.999) * self._period
        at_once = math.inf if options.unsafe_udp or math.isinf(options.udp_rate) else _SOURCES_AT_ONCE
        self._all = Bucket(options.udp_rate * at_once, options.udp_burst * at_once)
        #: When the bucket of a network that was met will be full again.
        self._newer: dict[str | bytes, float] = {}
        self._older: dict[str | bytes, float] = {}
        self._told: dict[str | bytes, None] = {}
        self._lines = Bucket(1 / _LINE_EVERY, _LINES)
        self._untold = 0

    def begin_turn(self) -> None:
        self._now = now = self._clock()
        self._all.refill(now)

    def admit(self, source: Source) -> bool:
        host: str = source[0]
        port: int = source[1]
        if port < self._least_port or port in self._own_ports:
            return self._drop(source, self._judge_port(port))

        # An IPv4 address is its own network: no call for most.
        network = host if ":" not in host else source_key(host)
        try:
            full_at = self._newer[network]
        except KeyError:
            # Of NAT64, the IPv4 address: an answer to the translated 255.255.255.255 would go to many too.
            if (reason := _judge_host(network if isinstance(network, str) else host)) is not None:
                return self._drop(source, reason)
            full_at = self._meet(network)

        now = self._now
        if full_at < now:
            full_at = now
        elif full_at - now > self._slack:
            return self._drop(source, "rate")
        if self._all.tokens < 1:
            return self._drop(source, "total_rate")

        self._all.tokens -= 1
        self._newer[network] = full_at + self._period
        return True

    def refuse(self, source: Source) -> None:
        self._drop(source, "broadcast")

    def _judge_port(self, port: int) -> str:
        if port == 0:
            return "port_0"

        return "own_port" if port in self._own_ports else "port_below_1024"

    def _meet(self, network: str | bytes) -> float:
        """Take `network` among the newer ones; return when its bucket will be full, if that is still known."""
        if len(self._newer) >= _TABLE_SIZE // 2:
            self._older, self._newer = self._newer, {}

        # At once, whether it is admitted or not: who only ever is dropped must not be forgotten for that.
        full_at = self._newer[network] = self._older.get(network, -math.inf)
        return full_at

    def _drop(self, source: Source, reason: str) -> bool:
        self._dropped[reason] += 1
        network = source_key(source[0])
        if network not in self._told:
            if len(self._told) >= _TABLE_SIZE:
                self._told.clear()
            self._told[network] = None
            self._tell(source, reason)

        return False

    def _tell(self, source: Source, reason: str) -> None:
        self._lines.refill(self._now)
        if self._lines.tokens < 1:
            self._untold += 1
            return

        self._lines.tokens -= 1
        rate = self._options.udp_rate
        why = _WHY[reason].format(each=_per_second(rate), all=_per_second(rate * _SOURCES_AT_ONCE))
        others = f"; so from {self._untold} others, not logged" if self._untold else ""
        logger.warning("dropping datagrams from %s port %d: %s%s", source[0], source[1], why, others)
        self._untold = 0


class UDPEcho:
    """Echoes on bound datagram sockets, which somebody else closes, under one guard for all of them."""

    def __init__(self, socks: Sequence[socket.socket], options: ServeOptions, counts: DatagramCounts) -> None:
        ports = {sock.getsockname()[1] for sock in socks}
        guard = SourceGuard(options, ports, counts.dropped)
        tune = not options.socket.rcvbuf
        self._reflectors = [Reflector(sock, guard, counts, tune=tune) for sock in socks]

    async def run(self, poller: Poller | Fallback) -> None:
        """Echo until cancelled."""
        async with create_task_group() as tasks:
            for reflector in self._reflectors:
                tasks.start_soon(reflector.run, poller)

    def finish(self) -> None:
        """Answer what has come already, and no more: for before the sockets close."""
        for reflector in self._reflectors:
            reflector.finish()

    def stop(self) -> None:
        """Answer nothing from now on."""
        for reflector in self._reflectors:
            reflector.stop()


def _judge_host(host: str) -> str | None:
    """Why nobody can be answered at `host`, or None."""
    if host == "255.255.255.255":
        return "broadcast"
    if host == "::" or host.startswith("0."):
        return "unspecified"
    if host.startswith("ff") or ("." in host and host.partition(".")[0] in _MULTICAST):
        return "multicast"

    return None


def _per_second(rate: float) -> str:
    return f"{format_rate(rate)}/s"
