"""The events engine's connections over TLS: the same turns, with records in between.

One recv(2), all its records decrypted, echoed and encrypted, one send(2). Until the kernel has taken that, nothing
more is read: not even from a peer that asks for nothing but answers of OpenSSL's own.
"""

from __future__ import annotations

__all__ = ("CappedTLSEventConnection", "TLSEventConnection")

from typing import TYPE_CHECKING, Any

from anyecho.net.stream import PolledStream
from anyecho.net.tls import TLSStream
from anyecho.net.tls_errors import TLSError
from anyecho.net.tls_records import RECORD_OVERHEAD, RECORD_SIZE, Records
from anyecho.server.events import EventConnection, EventsEngine

if TYPE_CHECKING:
    import socket

#: What one turn may read: four full records. OpenSSL's buffers never shrink, so it is also what each of the two has
#: cost a connection that was busy once.
_CHUNK = 4 * (RECORD_SIZE + RECORD_OVERHEAD)
#: That something is pending, to be sent or to be looked at; what, the records know.
_PENDING_MARK = b"?"


class TLSEventConnection(EventConnection):
    """`records` have nothing behind them yet: the first turns are those of the handshake."""

    __slots__ = ("_records",)

    def __init__(self, sock: socket.socket, engine: EventsEngine, records: Records) -> None:
        super().__init__(sock, engine)
        self._records = records

    def start(self, sockaddr: Any) -> None:
        self.engine.handshakes.begin(self)
        super().start(sockaddr)

    @property
    def records(self) -> Records:
        return self._records

    @property
    def echoes(self) -> bool:
        return self._records.established

    @property
    def totals(self) -> tuple[int, int]:
        # Of what was received in turns, all was given to OpenSSL; the rest is what came during the close.
        return self._received + self._records.plaintext_queued, self._records.plaintext_sent

    def _turn(self) -> None:
        engine = self.engine
        try:
            count = self.sock.recv_into(engine.buffer, _CHUNK)
        except BlockingIOError:
            return

        if count != engine.count:
            if not count:
                self._finish("tls_truncated" if self.echoes else "handshake")
                return
            engine.count, engine.chunk = count, engine.buffer[:count]

        self._records.feed(engine.chunk)
        self._process()
        if count == _CHUNK and not (self.reason or self._pending):
            self._wait()  # there may be more to read

    def _flush(self) -> None:
        if not self._records.wire_bytes_pending:
            self._records.process_more()
        self._process()
        if not (self.reason or self._pending):
            self._wait()

    def _process(self) -> None:
        """Send what OpenSSL has to say, having given it the echo of what it holds."""
        records = self._records
        try:
            done = (records.established or self._handshake()) and self._encrypt_echo()
        except TLSError as exc:
            self.end(self.why_broken(exc))
        if self.reason:
            return

        sent_all = self._send_close_notify() if done and not records.half_closed else self._send()
        if sent_all and records.half_closed:
            self._finish("eof")
        elif sent_all and records.wants_more:
            self._pending = b""
        else:
            was_pending, self._pending = self._pending, _PENDING_MARK
            if not was_pending:
                self._wait()

    def _handshake(self) -> bool:
        """Take a step; return whether that was the last."""
        over = self._records.handshake()
        if over:
            self.engine.handshakes.finish(self)

        return over

    def _encrypt_echo(self) -> bool:
        """Encrypt all that can be decrypted; return whether the peer is done."""
        return self._records.echo_all(self.engine.plain)

    def _send_close_notify(self) -> bool:
        records = self._records
        owed = records.wire_bytes_pending
        records.send_eof()
        try:
            return self._send()
        except OSError:
            if owed:
                raise

            return True  # the peer has all of its echo: it need not have waited for our close_notify

    def _send(self) -> bool:
        """Send once; return whether the kernel took all."""
        try:
            return self._records.flush(self.sock.send)
        except BlockingIOError:
            return False

    def _as_stream(self) -> PolledStream:
        # What has to be sent the records know.
        return TLSStream(self.sock, self.engine.poller.register(self.sock), self._records)


class CappedTLSEventConnection(TLSEventConnection):
    """For where there is a limit of bytes, of plaintext: as `CappedEventConnection`."""

    __slots__ = ()

    def _encrypt_echo(self) -> bool:
        records = self._records
        while left := self.engine.max_bytes - records.plaintext_queued:
            data = records.receive(left)
            if not data:
                return data is not None

            records.send(data)

        more = records.receive(1)
        if more:
            self.end("bytes")
        return more == b""
