"""A TLS session without I/O: encrypted bytes in, plaintext out, and the reverse.

It is an `ssl.SSLObject` on two memory BIOs. The module uses no socket and never waits. A non-blocking `SSLSocket`
is no faster, and cannot half-close without losing data.
"""

from __future__ import annotations

__all__ = ("CHUNK", "RECORD_SIZE", "WIRE_CHUNK", "Records")

import ssl
from contextlib import nullcontext, suppress
from typing import Any, TypeVar

from anyecho.net.tls.errors import TLSError
from anyecho.net.tls.outgoing import Outgoing

T = TypeVar("T")

#: Maximum plaintext of one record (RFC 8446, section 5.1). One call of OpenSSL moves no more than that.
RECORD_SIZE = 16384
#: Plaintext passed to OpenSSL at a time, and the maximum of one recv(2): four full records. Encryption adds at most
#: 256 bytes to each (section 5.2); TLS 1.2 allows 2048, and uses less.
CHUNK = 4 * RECORD_SIZE
WIRE_CHUNK = CHUNK + 4 * 256
#: Record header: type, version, and the length in the last two bytes (RFC 8446, section 5.1).
_HEADER_SIZE = 5
#: Records passed to OpenSSL at once. As many KeyUpdates, of 27 bytes each, take 1.6 ms.
_RECORDS_PER_FEED = 64


class Records(Outgoing):
    """One TLS session. No method waits: each returns whether it needs more input.

    Everything that OpenSSL sends (data, handshake messages, tickets, alerts, answers to KeyUpdates) is pending, in
    order, until `flush` or `take` removes it. A `TLSError` is final: later calls raise it again. The alert that
    reports it to the peer is pending then.

    A TLS 1.3 peer may send a message after the handshake (a ticket, a KeyUpdate) in several records (RFC 8446,
    section 5.1). OpenSSL encrypts nothing after it has read only a part of such a message. Until `receive` or
    `resume` has read the rest, plaintext from `send` is held, and so is the close_notify of `send_eof`.
    """

    __slots__ = (
        "_decrypted",
        "_incoming",
        "_missing_bytes",
        "_needs_input",
        "_unparsed",
        "established",
        "failure",
        "half_closed",
        "resumed",
        "tls",
        "write_blocked",
    )

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None) -> None:
        super().__init__()
        self._incoming = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        #: Input not yet passed to OpenSSL, and the bytes still to come of the last record that was passed.
        self._unparsed = b""
        self._missing_bytes = 0
        #: Plaintext read while sending close_notify, for `receive`.
        self._decrypted = b""
        #: A copy of the error that ended the session.
        self.failure: TLSError | None = None
        #: Whether OpenSSL has no whole record left. Its exception that says so costs as much as a record.
        self._needs_input = True
        #: Whether the handshake is over.
        self.established = False
        #: Whether our close_notify was sent, is pending, or is held.
        self.half_closed = False
        #: Whether plaintext or our close_notify is held until the peer completes its message.
        self.write_blocked = False
        #: Set when held plaintext or close_notify was encrypted. The stream clears it.
        self.resumed = False

    @property
    def wants_more(self) -> bool:
        """Whether `receive` can return nothing before `feed` gets more input."""
        return self._needs_input and not self._decrypted and len(self._unparsed) < _HEADER_SIZE

    def feed(self, data: bytes | memoryview) -> None:
        """Accept `data` from the network. Records over `_RECORDS_PER_FEED` are kept for `process_more`."""
        size = len(data)
        self._needs_input = False
        if self._unparsed:
            data = self._unparsed + data
            size = len(data)
        elif not self._missing_bytes and size > _HEADER_SIZE and data[3] << 8 | data[4] == size - _HEADER_SIZE:
            # Most input is exactly one record. The search for record boundaries below costs a tenth of an echo.
            self._incoming.write(data)
            return

        end = self._missing_bytes
        for _ in range(_RECORDS_PER_FEED):
            if end + _HEADER_SIZE > size:
                break
            end += _HEADER_SIZE + (data[end + 3] << 8 | data[end + 4])

        self._missing_bytes = max(0, end - size)
        self._unparsed = bytes(data[end:])
        self._incoming.write(data[:end] if self._unparsed else data)

    def process_more(self) -> bool:
        """Pass input that `feed` kept to OpenSSL; return whether there was any.

        An empty record costs as much CPU as one of 16 KiB, and a KeyUpdate far more. For fairness, the caller
        yields to other tasks before each call.
        """
        if len(self._unparsed) < _HEADER_SIZE:
            return False

        data, self._unparsed = self._unparsed, b""
        self.feed(data)
        return True

    def handshake(self) -> bool:
        """Continue the handshake; return whether it is complete. If not, it needs more input."""
        try:
            self.tls.do_handshake()
        except ssl.SSLError as exc:
            self._handle_error(exc, None)
            return False

        self.established = True
        return True

    def receive(self, max_bytes: int) -> bytes | None:
        """Return plaintext, at most `max_bytes`: empty at the peer's close_notify, None if more input is needed."""
        if self._decrypted:
            data, self._decrypted = self._decrypted[:max_bytes], self._decrypted[max_bytes:]
            return data
        if self._needs_input and self.failure is None:
            return None

        first = self._read(min(max_bytes, RECORD_SIZE))
        if self.write_blocked:
            # An error would lose the data of `first`. The next call raises it.
            with suppress(TLSError) if first else nullcontext():
                self.resume()
        if not first or self._needs_input or len(first) == max_bytes:
            return first

        # Small records are joined: otherwise each would be echoed by a send(2) of its own.
        chunks = [first]
        left = max_bytes - len(first)
        with suppress(TLSError):  # return the data before it first; the next call raises it
            while left and (chunk := self._read(min(left, RECORD_SIZE))):
                chunks.append(chunk)
                left -= len(chunk)

        return b"".join(chunks)

    def echo_all(self, buffer: memoryview) -> bool:
        """`send` everything that `receive` would return; return whether the peer has sent close_notify.

        `buffer` has room for one record. `receive` and `send` for each record would cost as much as OpenSSL's work
        on a small one.
        """
        if self._needs_input:
            return False

        tls: Any = self.tls  # typeshed lacks this form, in which read() fills a buffer
        incoming = self._incoming
        try:
            while count := tls.read(RECORD_SIZE, buffer):
                tls.write(buffer[:count])  # all of it: one record, into memory
                self.plaintext_queued += count
                # A record that did not fill our buffer has left nothing in OpenSSL's.
                if not incoming.pending and (count < RECORD_SIZE or not tls.pending()):
                    self._needs_input = True
                    return False
        except ssl.SSLError as exc:
            return self._handle_error(exc, True) or False

        self._check_eof()
        return True

    def send(self, item: bytes | memoryview) -> None:
        """Encrypt all of `item`, or hold it while the peer's message is incomplete."""
        self.plaintext_queued += len(item)
        if self.write_blocked:
            self.held += item
            return

        try:
            self.tls.write(item)  # all of it, into memory: `ssl` does not enable partial writes
        except ssl.SSLWantReadError:
            self.held += item
            self.write_blocked = True
        except ssl.SSLError as exc:
            self._set_failure(exc)
            raise

    def send_eof(self) -> None:
        """Send close_notify after all held plaintext. The peer may still send, and `receive` still works."""
        self.half_closed = True
        if self.held or not self._send_close_notify():
            self.write_blocked = True

    def resume(self) -> None:
        """Encrypt what is held if the peer has completed its message, and clear `write_blocked` then."""
        try:
            if self.held:
                self.tls.write(self.held)
                self.held = b""
        except ssl.SSLError as exc:
            if self._handle_error(exc, True):
                self._check_eof()
            return

        self.write_blocked = self.half_closed and not self._send_close_notify()
        self.resumed = True

    def _send_close_notify(self) -> bool:
        """Return false if OpenSSL cannot encrypt it yet."""
        # Read all records first: unwrap() looks for the peer's close_notify at once, and takes any other record for
        # an attack.
        while (data := self._read(RECORD_SIZE)) or self.process_more():
            self._decrypted += data or b""

        try:
            self.tls.unwrap()
        except ssl.SSLError as exc:
            if exc.reason == "SHUTDOWN_WHILE_IN_INIT":
                return False

            self._handle_error(exc, None)  # "want read" is no failure: the peer's close_notify may come later

        return True

    def _check_eof(self) -> None:
        """Raise if the peer's close_notify came inside an unfinished message: nothing can be encrypted then."""
        try:
            self.tls.write(b"")  # produces no record
        except ssl.SSLWantReadError:
            self._set_failure(TLSError(ssl.SSL_ERROR_SSL, "the peer ended in the middle of a handshake message"))
        except ssl.SSLError:
            return  # our close_notify was sent before
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise type(self.failure)(*self.failure.args)

    def _read(self, size: int) -> bytes | None:
        self._raise_failure()
        if self._needs_input:
            return None

        try:
            data = self.tls.read(size)
        except ssl.SSLError as exc:
            return self._handle_error(exc, b"")

        if not data:
            self._check_eof()
        # A read of less than `size` has left nothing in OpenSSL's buffer.
        self._needs_input = bool(data) and not (
            self._incoming.pending or (len(data) == size and self.tls.pending())
        )
        return data

    def _handle_error(self, exc: TLSError, at_eof: T) -> T | None:
        """Return None for "want read", `at_eof` for the peer's close_notify; raise every other error."""
        if isinstance(exc, ssl.SSLZeroReturnError):
            return at_eof
        if not isinstance(exc, ssl.SSLWantReadError):
            self._set_failure(exc)
            try:
                raise exc
            finally:
                del exc  # its traceback has this frame: a cycle

        self._needs_input = True
        return None

    def _set_failure(self, exc: TLSError) -> None:
        # A copy, because the traceback of the original refers to this session: a cycle.
        self.failure = self.failure or type(exc)(*exc.args)
