"""Counters, with a reason for every close and drop."""

from __future__ import annotations

__all__ = ("Peer", "Stats")

from collections import Counter
from dataclasses import dataclass, field

from anyecho.net.datagram_counts import DatagramCounts
from anyecho.net.proxy_protocol import SockAddr


@dataclass(eq=False)
class Stats:
    """What a server has done since it started.

    `closed` counts by reason:

    * ``eof``: the peer was done, and the kernel has taken all of its echo; ``broken``: reset, or given up by the
      kernel; ``idle``;
    * ``untrusted``: `proxy_trusted` does not name it; ``proxy``: no PROXY header, or a wrong one;
      ``proxy_timeout``: a part of one;
    * ``handshake``: refused, given up by the peer, or not over in time; ``tls_truncated``: a FIN without
      close_notify, so that more may have been meant to come; ``tls_error``: what no peer can have meant to send;
    * ``drained``: still open when a drain's grace was over, or when the block was left; ``cancelled``: ended by
      `abort`, or because an exception or a cancellation left the block. In either case a peer whose end had come,
      and to which nothing was owed, is ``eof``;
    * ``error``: a bug of ours, logged with its traceback.

    `accept_errors` counts by errno name, ``shed`` being connections closed for want of a descriptor. The byte
    totals are of connections that have closed. `datagrams` has its own of everything.
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
    """One that is connected now."""

    #: As getpeername(2) has it, (host, port) or a path; of a connection that a trusted proxy made, for whom.
    address: SockAddr
    #: What logs call the proxy, if there is one.
    via: str = ""
    bytes_received: int
    bytes_sent: int
