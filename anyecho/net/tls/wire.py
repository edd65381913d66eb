"""A `Wire` over TLS: a non-blocking socket and a TLS session.

The peer's data ends with its close_notify. A FIN without it raises `TLSTruncated`, another failure `TLSError`.
The alert that reports it to the peer has been sent then, if the kernel took it.
"""

from __future__ import annotations

__all__ = ("TLSWire",)

import socket
import ssl
from contextlib import suppress

from anyecho.net.tls.errors import TLSError, TLSTruncated
from anyecho.net.tls.records import CHUNK, WIRE_CHUNK, Records

#: Maximum bytes pending in `read_into`, for a peer that makes OpenSSL answer but does not read: twice what one
#: `write` can leave pending.
_MAX_PENDING = 2 * CHUNK


class TLSWire:
    """The wire of connected, non-blocking `sock` and the session `records`, of either side."""

    __slots__ = ("_socket_may_have_input", "records", "sock")

    def __init__(self, sock: socket.socket, records: Records) -> None:
        self.sock = sock
        self.records = records
        #: Whether the last recv(2) filled its buffer.
        self._socket_may_have_input = False

    @property
    def established(self) -> bool:
        return self.records.established

    def handshake(self) -> bool:
        records = self.records
        try:
            while not records.handshake():
                self.flush()
                self._feed()
        except BlockingIOError:
            return False
        except OSError:
            self._try_flush()
            raise

        self.flush()
        return True

    def read_into(self, buffer: memoryview, /) -> int:
        """As a `Wire`'s: takes input with at most one recv(2), and sends what OpenSSL answers."""
        records = self.records
        try:
            data = records.receive(len(buffer))
            if data is None:
                self._feed()
                data = records.receive(len(buffer))
        except BlockingIOError:
            raise
        except OSError:
            self._try_flush()
            raise

        if records.wire_bytes_pending:
            self._try_flush()
            if records.wire_bytes_pending > _MAX_PENDING:
                raise TLSError(ssl.SSL_ERROR_SSL, "the peer does not read the answers it asks for")
        if data is None:
            raise BlockingIOError

        buffer[: len(data)] = data
        return len(data)

    @property
    def has_input(self) -> bool:
        return self._socket_may_have_input or not self.records.wants_more

    def write(self, data: bytes | memoryview, /) -> int:
        """As a `Wire`'s: encrypts at most 64 KiB, and nothing while encrypted bytes are pending."""
        records = self.records
        if records.write_blocked or (records.wire_bytes_pending and not self.flush()):
            raise BlockingIOError

        if len(data) > CHUNK:
            data = memoryview(data)[:CHUNK]
        records.send(data)
        self.flush()
        return len(data)

    @property
    def write_blocked(self) -> bool:
        """Whether the peer has sent only a part of a TLS 1.3 message: OpenSSL encrypts nothing then."""
        return self.records.write_blocked

    @property
    def pending(self) -> bool:
        return self.records.wire_bytes_pending > 0

    def flush(self) -> bool:
        try:
            return self.records.flush(self.sock.send)
        except BlockingIOError:
            return False

    def shutdown(self) -> None:
        """Queue close_notify after all accepted bytes, and send what the kernel takes; `flush` sends the rest.

        No FIN: reading goes on.
        """
        self.records.send_eof()
        self.flush()

    def _try_flush(self) -> None:
        # A reader ignores write errors: data that arrived before may still be read.
        with suppress(OSError):
            self.flush()

    def _feed(self) -> None:
        """Pass more input to OpenSSL. Raises `BlockingIOError` if there is none."""
        self._socket_may_have_input = False
        if self.records.process_more():
            return

        data = self.sock.recv(WIRE_CHUNK)
        if not data:
            raise TLSTruncated(ssl.SSL_ERROR_EOF, "it ended without a close_notify")

        self._socket_may_have_input = len(data) == WIRE_CHUNK
        self.records.feed(data)
