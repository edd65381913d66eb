"""Counters, with a reason for every close and drop."""

from __future__ import annotations

__all__ = ("Peer", "Stats", "dropped_log_lines")

import logging
from collections import Counter
from dataclasses import dataclass, field

from anyecho.net.names import SockAddr
from anyecho.net.udp.counts import DatagramCounts
from anyecho.server.reasons import CloseReason


@dataclass(eq=False)
class Stats:
    """Counters of a server since its start.

    `closed` counts by reason:

    REASONS

    ``drained`` and ``cancelled`` count as ``eof`` if EOF from the peer has arrived and no echo is pending.

    `accept_errors` counts by errno name; ``shed`` counts connections closed for lack of a descriptor.
    `tls_failures` counts failed handshakes and invalid records by OpenSSL's name of the error. The byte totals
    include closed connections only. `datagrams` has all counters of UDP.
    """

    accepted: int = 0
    active: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    closed: Counter[str] = field(default_factory=Counter)
    accept_errors: Counter[str] = field(default_factory=Counter)
    tls_failures: Counter[str] = field(default_factory=Counter)
    datagrams: DatagramCounts = field(default_factory=DatagramCounts)


_REASONS = "\n    ".join(f"* ``{each}``: {each.description}" for each in CloseReason)
Stats.__doc__ = (Stats.__doc__ or "").replace("REASONS", _REASONS)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A connected peer.

    * `address`: from getpeername(2), (host, port) or a path; behind a trusted proxy, the asserted source;
    * `via`: the name of the proxy in logs, if there is one;
    * `bytes_received`, `bytes_sent`: payload so far, plaintext over TLS; headers, records and handshakes do not
      count. Received is what was read, sent what the kernel has accepted.
    """

    address: SockAddr
    via: str = ""
    bytes_received: int
    bytes_sent: int


def dropped_log_lines() -> int:
    """Return how many lines the handlers of the root logger have dropped, by their attribute `dropped_lines`."""
    return sum(getattr(handler, "dropped_lines", 0) for handler in logging.getLogger().handlers)
