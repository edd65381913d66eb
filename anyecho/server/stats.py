"""Counters, with a reason for every close and drop."""

from __future__ import annotations

__all__ = ("Peer", "Stats")

from collections import Counter
from dataclasses import dataclass, field

from anyecho.net.names import SockAddr
from anyecho.net.udp.counts import DatagramCounts


@dataclass(eq=False)
class Stats:
    """Counters of a server since its start.

    `closed` counts by reason:

    * ``eof``: EOF from the peer, and the kernel accepted the whole echo; ``broken``: reset, or a timeout in the
      kernel; ``idle``;
    * ``untrusted``: outside the networks of `proxy_trusted`; ``proxy``: no PROXY header, or an invalid one;
      ``proxy_timeout``: an incomplete one;
    * ``handshake``: refused, abandoned by the peer, or incomplete in time; ``tls_truncated``: a FIN without
      close_notify, so data may be missing; ``tls_error``: an invalid record;
    * ``drained``: still open after the grace period of a drain, or when the block was left; ``cancelled``: ended by
      `abort`, or because an exception or a cancellation left the block. After EOF from the peer and without pending
      echo, both count as ``eof``;
    * ``error``: a bug of the server, logged with its traceback.

    `accept_errors` counts by errno name; ``shed`` counts connections closed for lack of a descriptor. The byte
    totals include closed connections only. `datagrams` has all counters of UDP.
    """

    accepted: int = 0
    active: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    closed: Counter[str] = field(default_factory=Counter)
    accept_errors: Counter[str] = field(default_factory=Counter)
    datagrams: DatagramCounts = field(default_factory=DatagramCounts)


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
