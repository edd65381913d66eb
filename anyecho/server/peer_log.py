"""The name of a peer, and the log lines about its connection."""

from __future__ import annotations

__all__ = ("LoggedPeer", "log_rejected")

import logging
from abc import ABC, abstractmethod
from time import monotonic
from typing import Any

from anyecho.net.names import SockAddr, name_of, peer_name
from anyecho.net.sockets import Socket
from anyecho.net.tls.attributes import session_fields
from anyecho.net.tls.records import Records
from anyecho.server.reasons import CloseReason

logger = logging.getLogger("anyecho.server")
#: Closed connections at info, opened ones at debug.
access_logger = logging.getLogger("anyecho.access")


class LoggedPeer(ABC):
    """The peer connected to `sock`. A subclass sets the attributes: another call costs 0.1 us per connection."""

    __slots__ = ("_name", "_started_at", "asserted", "listener", "sock", "via")

    sock: Socket
    #: The address of the listener.
    listener: str
    #: Client address asserted by a trusted proxy; None: the peer's address is that of the socket.
    asserted: SockAddr | None
    #: The name of the proxy in logs, if it asserted an address; else empty.
    via: str
    #: The close reason, set when the connection begins to close.
    reason: CloseReason
    #: The TLS session, if there is one.
    records: Records | None
    #: Empty until `name` is used.
    _name: str
    _started_at: float

    @property
    @abstractmethod
    def totals(self) -> tuple[int, int]:
        """Bytes received and sent so far."""

    @property
    def name(self) -> str:
        """The name of the peer in logs. Computed on first use: most connections are never logged."""
        if not self._name:
            try:
                self._set_name(self.sock.getpeername() if self.asserted is None else None)
            except OSError:
                self._name = "unknown"

        return self._name

    def _set_name(self, sockaddr: Any) -> None:
        if not self._name:
            self._name = peer_name(self.sock, sockaddr) if self.asserted is None else name_of(self.asserted)

    def log_start(self, sockaddr: Any) -> None:
        if logger.isEnabledFor(logging.INFO) or access_logger.isEnabledFor(logging.INFO):
            self.record_start(sockaddr)
            logger.info("connection accepted", extra={"peer": self._name})
            if self.records is None:
                self.log_open()

    def record_start(self, sockaddr: Any) -> None:
        self._set_name(sockaddr)
        self._started_at = monotonic()

    def log_open(self) -> None:
        """Log in the access log that the connection is open: its handshake, if there is one, is complete."""
        if access_logger.isEnabledFor(logging.DEBUG):
            access_logger.debug("opened", extra=self._fields())

    def log_end(self) -> None:
        if logger.isEnabledFor(logging.INFO):
            logger.info("closing", extra={"peer": self.name})
        if access_logger.isEnabledFor(logging.INFO):
            fields = self._fields()
            fields["bytes_received"], fields["bytes_sent"] = self.totals
            fields |= {"reason": str(self.reason), "seconds": round(monotonic() - self._started_at, 6)}
            access_logger.info("closed", extra=fields)

    def _fields(self) -> dict[str, Any]:
        fields = _address_fields(self.name, self.listener)
        if self.via:
            fields["via"] = self.via
        if self.records is not None:
            fields |= session_fields(self.records.tls)

        return fields


def log_rejected(sock: Socket, sockaddr: Any, listener: str, reason: CloseReason) -> None:
    """Log an accepted `sock` that is closed without a connection, in the access log."""
    if access_logger.isEnabledFor(logging.INFO):
        fields = _address_fields(peer_name(sock, sockaddr), listener)
        fields |= {"reason": str(reason), "bytes_received": 0, "bytes_sent": 0, "seconds": 0.0}
        access_logger.info("closed", extra=fields)


def _address_fields(peer: str, listener: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"peer": peer, "listener": listener}
    # The name of a peer with an IP address is address_port, as of `peer_name` and `name_of`.
    if not peer.startswith("unix_") and (port := peer.rpartition("_")[2]).isdecimal():
        fields |= {"peer_address": peer.removesuffix(f"_{port}"), "peer_port": int(port)}

    return fields
