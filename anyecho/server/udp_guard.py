"""Which datagrams get a reply, and how many of them.

The source of a datagram can be forged. A reply to a forged source floods a victim, or starts an endless loop
between two echo services (CVE-2024-2169). So no reply goes to an address or port that no client has. Each source
has a token bucket, and one more is shared by all sources.

`ServeOptions.unsafe_udp` removes two of the guards, for labs: source ports 1 to 1023 get replies, and the shared
token bucket is off. The rate per source has its own option. The other guards stay: such a reply could not be
received, and a reply to one of the server's own ports is a loop.
"""

from __future__ import annotations

__all__ = ("DROP_REASONS", "SourceGuard")

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection
from time import monotonic

from anyecho.net.names import source_key, unmapped
from anyecho.net.udp.counts import Source
from anyecho.server.options import ServeOptions
from anyecho.throttle import TokenBucket
from anyecho.units import format_rate, or_infinite

logger = logging.getLogger("anyecho.server")

#: Lower ports belong to services, never to clients: the rule of inetd and xinetd.
_MIN_CLIENT_PORT = 1024
#: The shared token bucket has this many times the rate and burst of one source.
_TOTAL_RATE_FACTOR = 100
#: Source networks remembered, in two halves: when the newer is full, the older is dropped. 3 MiB.
_TABLE_SIZE = 16384
#: Seconds between two tokens at most: infinity would compare as no limit.
_MAX_PERIOD = 1e9
#: First octets of IPv4 multicast (RFC 5771) and reserved (RFC 1112) addresses.
_MULTICAST = frozenset(map(str, range(224, 256)))
#: Burst of log lines, and seconds until one more is allowed: forged sources cost an attacker nothing.
_LOG_BURST = 10
_LOG_INTERVAL = 10.0

_UNANSWERABLE = "no reply can be sent to it"
_REASON_TEXTS = {
    "port_0": _UNANSWERABLE,
    "port_below_1024": "no client's port is below 1024 (--unsafe-udp answers it)",
    "own_port": "its port is a port of this server, and a reply might loop for ever (send from another port)",
    "multicast": _UNANSWERABLE,
    "broadcast": "broadcast and multicast get no reply (send to, and from, a unicast address)",
    "unspecified": _UNANSWERABLE,
    "rate": "it sends more than {each} (--udp-rate, --udp-burst)",
    "total_rate": (
        "all sources together send more than {all}{share} (a hundred times --udp-rate; --unsafe-udp lifts it)"
    ),
}
#: Why a datagram gets no reply: the keys of `DatagramCounts.dropped`, but for ``fault``.
DROP_REASONS = (*_REASON_TEXTS,)


class SourceGuard:
    """Decides which sources get replies. Counts drops in `dropped`, by reason, and logs each source once."""

    def __init__(
        self,
        options: ServeOptions,
        own_ports: Collection[int],
        dropped: Counter[str],
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._rate = rate = or_infinite(options.udp_rate)
        self._own_ports = frozenset(own_ports)
        self._dropped = dropped
        self._clock = clock
        self._now = clock()
        self._min_port = 1 if options.unsafe_udp else _MIN_CLIENT_PORT
        # The token bucket of a source is one number: the time at which it is full again (GCRA, ITU-T I.371). A
        # thousandth of a token allows for rounding errors of the sum of floats.
        self._period = min(1 / rate, _MAX_PERIOD)
        self._tolerance = (options.udp_burst - 0.999) * self._period
        self._total_factor = _TOTAL_RATE_FACTOR / options.processes
        self._share = "" if options.processes == 1 else f", one of {options.processes} shares"
        total_factor = math.inf if options.unsafe_udp or math.isinf(rate) else self._total_factor
        self._total_bucket = TokenBucket(rate * total_factor, options.udp_burst * total_factor)
        #: By source network, the time at which its token bucket is full again.
        self._newer: dict[str | bytes, float] = {}
        self._older: dict[str | bytes, float] = {}
        self._logged: dict[str | bytes, None] = {}
        self._log_bucket = TokenBucket(1 / _LOG_INTERVAL, _LOG_BURST)
        self._suppressed = 0

    def begin_batch(self) -> None:
        self._now = now = self._clock()
        self._total_bucket.refill(now)

    def admit(self, source: Source) -> bool:
        host: str = source[0]
        port: int = source[1]
        if port < self._min_port or port in self._own_ports:
            return self._drop(source, self._port_reason(port))

        # An IPv4 address is its own key: most sources need no call. Of an IPv4-mapped source, which a socket that a
        # service manager has bound may receive, the key is the IPv4 address.
        network = host if ":" not in host else source_key(host)
        try:
            full_at = self._newer[network]
        except KeyError:
            # For NAT64, the embedded IPv4 address: a reply to the translated 255.255.255.255 is a broadcast too.
            if (reason := _host_reason(network if isinstance(network, str) else host)) is not None:
                return self._drop(source, reason)
            full_at = self._add_network(network)

        now = self._now
        if full_at < now:
            full_at = now
        elif full_at - now > self._tolerance:
            return self._drop(source, "rate")
        if self._total_bucket.tokens < 1:
            return self._drop(source, "total_rate")

        self._total_bucket.tokens -= 1
        self._newer[network] = full_at + self._period
        return True

    def refuse(self, source: Source) -> None:
        self._drop(source, "broadcast")

    def _port_reason(self, port: int) -> str:
        if port == 0:
            return "port_0"

        return "own_port" if port in self._own_ports else "port_below_1024"

    def _add_network(self, network: str | bytes) -> float:
        """Store `network` in the newer half. Return when its bucket is full, or -inf if it is not known."""
        if len(self._newer) >= _TABLE_SIZE // 2:
            self._older, self._newer = self._newer, {}

        # Stored before the decision: a source must stay in the table even if all its datagrams are dropped.
        full_at = self._newer[network] = self._older.get(network, -math.inf)
        return full_at

    def _drop(self, source: Source, reason: str) -> bool:
        self._dropped[reason] += 1
        network = source_key(source[0])
        if network not in self._logged:
            if len(self._logged) >= _TABLE_SIZE:
                self._logged.clear()
            self._logged[network] = None
            self._log_drop(source, reason)

        return False

    def _log_drop(self, source: Source, reason: str) -> None:
        self._log_bucket.refill(self._now)
        if self._log_bucket.tokens < 1:
            self._suppressed += 1
            return

        self._log_bucket.tokens -= 1
        each, total = f"{format_rate(self._rate)}/s", f"{format_rate(self._rate * self._total_factor)}/s"
        why = _REASON_TEXTS[reason].format(each=each, all=total, share=self._share)
        more = f"; also from {self._suppressed} other sources, not logged" if self._suppressed else ""
        logger.warning("dropping datagrams from %s port %d: %s%s", unmapped(source[0]), source[1], why, more)
        self._suppressed = 0


def _host_reason(host: str) -> str | None:
    """Return the reason why `host` gets no reply, or None."""
    if host == "255.255.255.255":
        return "broadcast"
    if host == "::" or host.startswith("0."):
        return "unspecified"
    if host.startswith("ff") or ("." in host and host.partition(".")[0] in _MULTICAST):
        return "multicast"

    return None
