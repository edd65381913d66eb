"""TLS without a socket: bytes of the network in, bytes of the peer out, and the other way round.

An `ssl.SSLObject` on two memory BIOs. Knows OpenSSL and its traps; who carries the records, and who waits for
them, others know. Not a non-blocking `SSLSocket`, which is no faster and cannot half-close without losing data.
"""

from __future__ import annotations

__all__ = ("OVERHEAD", "RECORD", "Records")

import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from anyio.streams.tls import TLSAttribute

from anyecho.net.tls_errors import TLSError

T = TypeVar("T")

#: The most that one record holds (RFC 8446, section 5.1), and so that one call of OpenSSL moves.
RECORD = 16384
#: And what may come on top of that, on the wire (section 5.2; TLS 1.2 would allow 2048, and needs less).
OVERHEAD = 256


#: Of a record: type, version, and length in the last two bytes (RFC 8446, section 5.1).
_HEADER = 5
#: Looked at at once: of KeyUpdates, 27 bytes each, 1.6 ms.
_RECORDS = 64


class Records:
    """One TLS session. Nothing here waits; what is missing to go on is said.

    All that OpenSSL has to say to the peer, asked for or not (handshakes, tickets, alerts, answers to key updates),
    lies in one place and in order, until it is taken by `flush` or `take`. A `TLSError` is final, and raised again;
    the alert that tells the peer of it is pending then.
    """

    __slots__ = (
        "_dry",
        "_failure",
        "_incoming",
        "_kept",
        "_outgoing",
        "_rest",
        "_settled",
        "_skip",
        "_stored",
        "established",
        "given",
        "gone",
        "half_closed",
        "tls",
    )

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        #: Taken out of the BIO, which cannot be looked into, and not yet sent.
        self._rest: bytes | memoryview = b""
        #: Of what came: fed, but not looked at yet; and how much is still to come of the record before that.
        self._kept = b""
        self._skip = 0
        #: Decrypted before anybody asked for it.
        self._stored = b""
        self._failure: TLSError | None = None
        #: Whether no whole record is left. To be told so by OpenSSL's exception costs as much as a record does.
        self._dry = True
        #: Whether the handshake is over.
        self.established = False
        #: Whether our close_notify is among what was, or is to be, sent.
        self.half_closed = False
        #: Bytes of plaintext given to `send`.
        self.given = 0
        #: Bytes of the network sent.
        self.gone = 0
        #: `given` when nothing was pending for the last time.
        self._settled = 0

    @property
    def failed(self) -> bool:
        return self._failure is not None

    @property
    def wants_more(self) -> bool:
        """Whether there is nothing to `receive` until the peer has said more."""
        return self._dry and not self._stored and len(self._kept) < _HEADER

    @property
    def unsent(self) -> int:
        """How many bytes are pending."""
        return len(self._rest) + self._outgoing.pending

    @property
    def delivered(self) -> int:
        """Bytes of plaintext sent, as far as can be told: what is pending of it has headers as well."""
        return max(self._settled, self.given - self.unsent)

    def take(self) -> bytes:
        """All that is pending, and is not any more."""
        rest = bytes(self._rest) + self._outgoing.read()
        self._rest = b""
        self.gone += len(rest)
        self._settled = self.given
        return rest

    def flush(self, send: Callable[[bytes | memoryview], int]) -> bool:
        """Give `send` all that is pending, once, which returns how much it took; return whether that was all."""
        rest: bytes | memoryview = self._outgoing.read()
        if self._rest:
            rest = bytes(self._rest) + rest if rest else self._rest
        if not rest:
            return True

        self._rest = rest
        count = send(rest)
        self.gone += count
        if count < len(rest):
            self._rest = memoryview(rest)[count:]
            return False

        self._rest = b""
        self._settled = self.given
        return True

    def feed(self, data: bytes | memoryview) -> None:
        """Take in bytes of the network, if more are wanted; of many small records, some are kept for `go_on`."""
        size = len(data)
        self._dry = False
        # Most messages are one record. To look for where the next begins would cost a tenth of their echo.
        if not (self._kept or self._skip) and size > _HEADER and data[3] << 8 | data[4] == size - _HEADER:
            self._incoming.write(data)
            return

        if self._kept:
            data = self._kept + data
            size = len(data)
        end = self._skip
        for _ in range(_RECORDS):
            if end + _HEADER > size:
                break
            end += _HEADER + (data[end + 3] << 8 | data[end + 4])

        self._skip = max(0, end - size)
        self._kept = bytes(data[end:])
        self._incoming.write(data[:end] if self._kept else data)

    def go_on(self) -> bool:
        """Look at more of what was fed; return whether there was any.

        An empty record costs as much as one of 16 KiB, and a KeyUpdate far more: whoever goes on lets others have
        their turn first.
        """
        if len(self._kept) < _HEADER:
            return False

        data, self._kept = self._kept, b""
        self.feed(data)
        return True

    def handshake(self) -> bool:
        """Go on with the handshake; return whether it is over. If not, the peer has to say more."""
        try:
            self.tls.do_handshake()
        except ssl.SSLError as exc:
            self._judge(exc, None)
            return False

        self.established = True
        return True

    def receive(self, max_bytes: int) -> bytes | None:
        """Plaintext, at most `max_bytes`; empty at the peer's close_notify, None while it has to say more."""
        if self._stored:
            data, self._stored = self._stored[:max_bytes], self._stored[max_bytes:]
            return data
        if self._dry and self._failure is None:
            return None

        first = self._read(min(max_bytes, RECORD))
        if not first or self._dry or len(first) == max_bytes:
            return first

        # A record is small beside what one recv(2) brings, and would be sent on alone.
        chunks = [first]
        left = max_bytes - len(first)
        with suppress(TLSError):  # first what was good before it; it is raised the next time
            while left and (chunk := self._read(min(left, RECORD))):
                chunks.append(chunk)
                left -= len(chunk)

        return b"".join(chunks)

    def reflect(self, buffer: memoryview) -> bool:
        """`send` all that there is to `receive`, through a `buffer` for one record; return if the peer is done.

        Step by step, the calls would cost as much as what OpenSSL does with a small record.
        """
        if self._dry:
            return False

        tls: Any = self.tls  # typeshed knows only the bytes of the other way
        incoming = self._incoming
        try:
            while count := tls.read(RECORD, buffer):
                tls.write(buffer[:count])  # all of it: one record, into memory
                self.given += count
                # A record that did not fill the buffer has left nothing in OpenSSL's own.
                if not incoming.pending and (count < RECORD or not tls.pending()):
                    self._dry = True
                    return False
        except ssl.SSLError as exc:
            return self._judge(exc, True) or False

        return True

    def send(self, item: bytes | memoryview) -> None:
        """Encrypt all of `item`."""
        self.given += len(item)
        try:
            count = self.tls.write(item)
            while count < len(item):
                item = memoryview(item)[count:]
                count = self.tls.write(item)
        except ssl.SSLError as exc:
            self._note(exc)
            raise

    def send_eof(self) -> None:
        """Say close_notify. The peer may go on sending, and `receive` goes on working."""
        # Not while a record is left to read: OpenSSL looks for the peer's close_notify at once, and takes anything
        # else for an attack.
        while (data := self._read(RECORD)) or self.go_on():
            self._stored += data or b""

        self.half_closed = True
        try:
            self.tls.unwrap()
        except ssl.SSLError as exc:
            self._judge(exc, None)  # that it wants to read the peer's own is no failure

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        tls = self.tls
        return {
            TLSAttribute.alpn_protocol: tls.selected_alpn_protocol,
            TLSAttribute.channel_binding_tls_unique: tls.get_channel_binding,
            TLSAttribute.cipher: tls.cipher,
            TLSAttribute.peer_certificate: lambda: tls.getpeercert(False),
            TLSAttribute.peer_certificate_binary: lambda: tls.getpeercert(True),
            TLSAttribute.server_side: lambda: tls.server_side,
            TLSAttribute.shared_ciphers: lambda: tls.shared_ciphers() if tls.server_side else None,
            TLSAttribute.ssl_object: lambda: tls,
            TLSAttribute.standard_compatible: lambda: True,
            TLSAttribute.tls_version: tls.version,
        }

    def _read(self, size: int) -> bytes | None:
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args)
        if self._dry:
            return None

        try:
            data = self.tls.read(size)
        except ssl.SSLError as exc:
            return self._judge(exc, b"")

        # Less than was asked for has left nothing in OpenSSL's own.
        self._dry = bool(data) and not (self._incoming.pending or (len(data) == size and self.tls.pending()))
        return data

    def _judge(self, exc: TLSError, end: T) -> T | None:
        """None if it is only that more is wanted, `end` if it is the peer's close_notify; all else is raised."""
        if isinstance(exc, ssl.SSLZeroReturnError):
            return end
        if not isinstance(exc, ssl.SSLWantReadError):
            self._note(exc)
            try:
                raise exc
            finally:
                del exc  # its traceback has this frame: a cycle

        self._dry = True
        return None

    def _note(self, exc: TLSError) -> None:
        # A copy: the original's traceback holds this session, and the session would hold it.
        self._failure = self._failure or type(exc)(*exc.args)
