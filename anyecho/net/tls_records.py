"""TLS without a socket: bytes of the network in, bytes of the peer out, and the other way round.

An `ssl.SSLObject` on two memory BIOs. Knows OpenSSL and its traps; who carries the records, and who waits for
them, others know. Not a non-blocking `SSLSocket`, which is no faster and cannot half-close without losing data.
"""

from __future__ import annotations

__all__ = ("RECORD_OVERHEAD", "RECORD_SIZE", "Records")

import ssl
from contextlib import nullcontext, suppress
from typing import Any, TypeVar

from anyecho.net.tls_errors import TLSError
from anyecho.net.tls_outgoing import Outgoing

T = TypeVar("T")

#: The most that one record holds (RFC 8446, section 5.1), and so that one call of OpenSSL moves.
RECORD_SIZE = 16384
#: And what may come on top of that, on the wire (section 5.2; TLS 1.2 would allow 2048, and needs less).
RECORD_OVERHEAD = 256


#: Of a record: type, version, and length in the last two bytes (RFC 8446, section 5.1).
_HEADER_SIZE = 5
#: Looked at at once: of KeyUpdates, 27 bytes each, 1.6 ms.
_RECORDS_PER_FEED = 64


class Records(Outgoing):
    """One TLS session. Nothing here waits; what is missing to go on is said.

    All that OpenSSL has to say to the peer, asked for or not (handshakes, tickets, alerts, answers to key updates),
    lies in one place and in order, until it is taken by `flush` or `take`. A `TLSError` is final, and raised again;
    the alert that tells the peer of it is pending then.

    TLS 1.3 sends messages after the handshake (tickets, KeyUpdates), and may cut one over several records
    (RFC 8446, section 5.1). OpenSSL encrypts nothing while it has read only a part. What `send` and `send_eof` are
    given then is held, in order, until `receive` or `resume` finds the message complete.
    """

    __slots__ = (
        "_decrypted",
        "_failure",
        "_incoming",
        "_missing_bytes",
        "_needs_input",
        "_unparsed",
        "established",
        "half_closed",
        "resumed",
        "tls",
        "write_blocked",
    )

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None) -> None:
        super().__init__()
        self._incoming = ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        #: Of what came: fed, but not looked at yet; and how much is still to come of the record before that.
        self._unparsed = b""
        self._missing_bytes = 0
        #: Decrypted before anybody asked for it.
        self._decrypted = b""
        self._failure: TLSError | None = None
        #: Whether no whole record is left. To be told so by OpenSSL's exception costs as much as a record does.
        self._needs_input = True
        #: Whether the handshake is over.
        self.established = False
        #: Whether our close_notify is among what was, or is to be, sent.
        self.half_closed = False
        #: Whether plaintext or our close_notify waits until the peer has completed a message.
        self.write_blocked = False
        #: Set when that was encrypted; the stream clears it.
        self.resumed = False

    @property
    def failed(self) -> bool:
        return self._failure is not None

    @property
    def wants_more(self) -> bool:
        """Whether there is nothing to `receive` until the peer has said more."""
        return self._needs_input and not self._decrypted and len(self._unparsed) < _HEADER_SIZE

    def feed(self, data: bytes | memoryview) -> None:
        """Accept `data` from the network. Of many small records, the later ones are kept for `process_more`."""
        size = len(data)
        self._needs_input = False
        # Most messages are one record. To look for where the next begins would cost a tenth of their echo.
        if (
            not (self._unparsed or self._missing_bytes)
            and size > _HEADER_SIZE
            and data[3] << 8 | data[4] == size - _HEADER_SIZE
        ):
            self._incoming.write(data)
            return

        if self._unparsed:
            data = self._unparsed + data
            size = len(data)
        end = self._missing_bytes
        for _ in range(_RECORDS_PER_FEED):
            if end + _HEADER_SIZE > size:
                break
            end += _HEADER_SIZE + (data[end + 3] << 8 | data[end + 4])

        self._missing_bytes = max(0, end - size)
        self._unparsed = bytes(data[end:])
        self._incoming.write(data[:end] if self._unparsed else data)

    def process_more(self) -> bool:
        """Look at more of what was fed; return whether there was any.

        An empty record costs as much as one of 16 KiB, and a KeyUpdate far more: whoever goes on lets others have
        their turn first.
        """
        if len(self._unparsed) < _HEADER_SIZE:
            return False

        data, self._unparsed = self._unparsed, b""
        self.feed(data)
        return True

    def handshake(self) -> bool:
        """Go on with the handshake; return whether it is over. If not, the peer has to say more."""
        try:
            self.tls.do_handshake()
        except ssl.SSLError as exc:
            self._handle_error(exc, None)
            return False

        self.established = True
        return True

    def receive(self, max_bytes: int) -> bytes | None:
        """Plaintext, at most `max_bytes`; empty at the peer's close_notify, None while it has to say more."""
        if self._decrypted:
            data, self._decrypted = self._decrypted[:max_bytes], self._decrypted[max_bytes:]
            return data
        if self._needs_input and self._failure is None:
            return None

        first = self._read(min(max_bytes, RECORD_SIZE))
        if self.write_blocked:
            self._resume_after(first)
        if not first or self._needs_input or len(first) == max_bytes:
            return first

        # A record is small beside what one recv(2) brings, and would be sent on alone.
        chunks = [first]
        left = max_bytes - len(first)
        with suppress(TLSError):  # first what was good before it; it is raised the next time
            while left and (chunk := self._read(min(left, RECORD_SIZE))):
                chunks.append(chunk)
                left -= len(chunk)

        return b"".join(chunks)

    def echo_all(self, buffer: memoryview) -> bool:
        """`send` all that there is to `receive`, through a `buffer` for one record; return if the peer is done.

        Step by step, the calls would cost as much as what OpenSSL does with a small record.
        """
        if self._needs_input:
            return False

        tls: Any = self.tls  # typeshed knows only the bytes of the other way
        incoming = self._incoming
        try:
            while count := tls.read(RECORD_SIZE, buffer):
                tls.write(buffer[:count])  # all of it: one record, into memory
                self.plaintext_queued += count
                # A record that did not fill the buffer has left nothing in OpenSSL's own.
                if not incoming.pending and (count < RECORD_SIZE or not tls.pending()):
                    self._needs_input = True
                    return False
        except ssl.SSLError as exc:
            return self._handle_error(exc, True) or False

        self._check_eof()
        return True

    def send(self, item: bytes | memoryview) -> None:
        """Encrypt all of `item`, or hold it while a part of a message has been read."""
        self.plaintext_queued += len(item)
        if self.write_blocked:
            self.hold(item)
            return

        try:
            count = self.tls.write(item)
            while count < len(item):
                item = memoryview(item)[count:]
                count = self.tls.write(item)
        except ssl.SSLWantReadError:
            self.hold(item)
            self.write_blocked = True
        except ssl.SSLError as exc:
            self._set_failure(exc)
            raise

    def send_eof(self) -> None:
        """Say close_notify, after what is held. The peer may go on sending, and `receive` goes on working."""
        self.half_closed = True
        if self.plaintext_held or not self._send_close_notify():
            self.write_blocked = True

    def resume(self) -> None:
        """Encrypt what is held, if the peer has completed its message; `write_blocked` tells."""
        try:
            while self.plaintext_held:
                self.release(self.tls.write)
        except ssl.SSLError as exc:
            if self._handle_error(exc, True):
                self._check_eof()
            return

        self.write_blocked = self.half_closed and not self._send_close_notify()
        self.resumed = True

    def _resume_after(self, data: bytes | None) -> None:
        """As `resume`; after `data`, a failure is raised the next time."""
        with suppress(TLSError) if data else nullcontext():
            self.resume()

    def _send_close_notify(self) -> bool:
        """Return whether OpenSSL could say it."""
        # Not while a record is left to read: OpenSSL looks for the peer's close_notify at once, and takes anything
        # else for an attack.
        while (data := self._read(RECORD_SIZE)) or self.process_more():
            self._decrypted += data or b""

        try:
            self.tls.unwrap()
        except ssl.SSLError as exc:
            if exc.reason == "SHUTDOWN_WHILE_IN_INIT":
                return False

            self._handle_error(exc, None)  # that it wants to read the peer's own is no failure

        return True

    def _check_eof(self) -> None:
        """Raise if the peer has said close_notify instead of the rest of its message: nothing can be encrypted."""
        try:
            self.tls.write(b"")  # makes no record
        except ssl.SSLWantReadError:
            self._set_failure(TLSError(ssl.SSL_ERROR_SSL, "the peer ended in the middle of a handshake message"))
        except ssl.SSLError:
            return  # our close_notify has been said
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args)

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
        # Less than was asked for has left nothing in OpenSSL's own.
        self._needs_input = bool(data) and not (
            self._incoming.pending or (len(data) == size and self.tls.pending())
        )
        return data

    def _handle_error(self, exc: TLSError, end: T) -> T | None:
        """None if it is only that more is wanted, `end` if it is the peer's close_notify; all else is raised."""
        if isinstance(exc, ssl.SSLZeroReturnError):
            return end
        if not isinstance(exc, ssl.SSLWantReadError):
            self._set_failure(exc)
            try:
                raise exc
            finally:
                del exc  # its traceback has this frame: a cycle

        self._needs_input = True
        return None

    def _set_failure(self, exc: TLSError) -> None:
        # A copy: the original's traceback holds this session, and the session would hold it.
        self._failure = self._failure or type(exc)(*exc.args)
