"""TLS connections of the events engine.

A turn is one recv(2), the echo of all its records, and one send(2). Back-pressure: nothing more is read until the
kernel has taken everything that is pending, including answers that OpenSSL sends by itself.
"""

from __future__ import annotations

__all__ = ("CappedTLSEventConnection", "TLSEventConnection")

from anyecho.net.tls.errors import TLSError
from anyecho.net.tls.records import WIRE_CHUNK, Records
from anyecho.server.events import EventConnection
from anyecho.server.phases import CLOSING, OPEN
from anyecho.server.reasons import CloseReason

#: Value of `_pending` while the records have bytes to send or input to process.
_PENDING_MARK = b"?"


class TLSEventConnection(EventConnection):
    """A TLS connection. Its first turns perform the handshake of `records`."""

    __slots__ = ()

    records: Records

    @property
    def totals(self) -> tuple[int, int]:
        # All plaintext received in turns was queued again. `_received` has the bytes that came during the close.
        return self._received + self.records.plaintext_queued, self.records.plaintext_sent

    def _turn(self) -> None:
        engine = self.engine
        try:
            # OpenSSL's buffers never shrink: a connection that was busy once keeps two of this size.
            count = self.sock.recv_into(engine.buffer, WIRE_CHUNK)
        except BlockingIOError:
            return

        if count != engine.count:
            if not count:
                self._close_now(CloseReason.TLS_TRUNCATED if self.phase is OPEN else CloseReason.HANDSHAKE)
                return
            engine.count, engine.chunk = count, engine.buffer[:count]

        self.records.feed(engine.chunk)
        self._process()
        if count == WIRE_CHUNK and self.phase < CLOSING and not self._pending:
            self._wait()  # there may be more to read

    def _flush(self) -> None:
        if not self.records.wire_bytes_pending:
            self.records.process_more()
        self._process()
        if self.phase < CLOSING and not self._pending:
            self._wait()

    def _process(self) -> None:
        """Continue the handshake, or encrypt the echo of all input that OpenSSL has; then send."""
        records = self.records
        try:
            if not records.established and records.handshake():
                self.engine.advance(self, OPEN)
            done = records.established and self._encrypt_echo()
        except TLSError as exc:
            self.request_close(self.close_reason(exc))
        if self.phase >= CLOSING:
            return

        sent_all = self._send_close_notify() if done and not records.half_closed else self._send()
        if sent_all and records.half_closed:
            self._close_now(CloseReason.EOF)
        elif sent_all and records.wants_more:
            self._pending = b""
        else:
            was_pending, self._pending = self._pending, _PENDING_MARK
            if not was_pending:
                self._wait()

    def _encrypt_echo(self) -> bool:
        """Decrypt all input and encrypt its echo; return whether the peer has sent close_notify."""
        return self.records.echo_all(self.engine.plain)

    def _send_close_notify(self) -> bool:
        records = self.records
        echo_pending = records.wire_bytes_pending
        records.send_eof()
        try:
            return self._send()
        except OSError:
            if echo_pending:
                raise

            return True  # the peer has all of its echo, and may close without waiting for our close_notify

    def _send(self) -> bool:
        """Send once; return whether the kernel has taken all."""
        try:
            return self.records.flush(self.sock.send)
        except BlockingIOError:
            return False


class CappedTLSEventConnection(TLSEventConnection):
    """Like `CappedEventConnection`: at most `max_bytes` of plaintext are echoed."""

    __slots__ = ()

    def _encrypt_echo(self) -> bool:
        records = self.records
        while True:
            left = self.engine.max_bytes - records.plaintext_queued
            data = records.receive(left or 1)
            if not data:
                return data is not None
            if not left:
                self.request_close(CloseReason.BYTES)
                return False

            records.send(data)
