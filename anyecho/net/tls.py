"""The stream over TLS: a `PolledStream` whose bytes go through `Records`.

It keeps the contract of the plain one, and with it the same errors, budget and totals (of plaintext). What it adds:

* The end of the peer's data is its close_notify, and nothing else. A FIN without it is `BrokenResourceError`.
* `send_eof` says close_notify and no more; either side may go on sending after the other has.
* What OpenSSL wants said while nobody sends goes out with the next call of any kind, in order. A `send` that was
  cancelled has given a part to OpenSSL: the next call sends the rest of that first.
* While only a part of a TLS 1.3 message has come, OpenSSL encrypts nothing. One `send` returns all the same, and
  `receive` sends that once the message is complete. A second `send` waits for that, and reads if no `receive` does.
* `aclose` takes `CLOSE_TIMEOUT` seconds at most; it says close_notify, and does not wait for the peer's.
"""

from __future__ import annotations

__all__ = ("CLOSE_TIMEOUT", "TLSStream")

import ssl
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from operator import index
from typing import Any

from anyio import (
    BrokenResourceError,
    BusyResourceError,
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    current_time,
)
from anyio.lowlevel import checkpoint

from anyecho.clock import LOOKS, call_until
from anyecho.net.stream import PolledStream
from anyecho.net.tls_attributes import attributes_of
from anyecho.net.tls_errors import alert_of
from anyecho.net.tls_records import RECORD_SIZE, Records
from anyecho.net.tls_transfer import TLSTransfer

#: Seconds that a peer who takes nothing can hold up a close.
CLOSE_TIMEOUT = 2.0
#: Given to OpenSSL at a time: four full records.
_CHUNK = 4 * RECORD_SIZE
#: Of what a peer sent that nobody will read; one that sends more is still sending.
_MAX_DISCARDED = 1 << 20
#: Pending at most while a peer makes OpenSSL answer (refuse to renegotiate, say) and does not read that: twice what
#: one `send` can have pending.
_MAX_PENDING = 2 * _CHUNK


class TLSStream(TLSTransfer):
    """`sock`, connected and non-blocking, as a stream that speaks TLS and closes it. First comes `handshake`."""

    __slots__ = ()

    @classmethod
    def wrap(cls, stream: PolledStream, records: Records) -> TLSStream:
        """The same connection, with TLS from now on; `stream` is not used any more."""
        return cls(stream._sock, stream._registration, records, budget=stream.budget)

    def without_tls(self) -> PolledStream:
        """The connection without TLS; what TLS has to say on it is its `rest`. This stream is not used any more."""
        stream = PolledStream(self._sock, self._registration)
        stream.rest = self.records.take()
        return stream

    async def handshake(self, turn: AbstractAsyncContextManager[None] | None = None) -> None:
        """Shake hands. A peer that is refused has been sent the alert that says why.

        Within `turn` is what keeps the processor busy: as long as some hundred echoes take.
        """
        self._check_sendable()
        self._sending = self._receiving = True
        over = False
        try:
            while not over:
                async with turn or nullcontext():
                    over = self.records.handshake()
                    # Within it: whoever waits for the turn has it a round later, when others had theirs.
                    await checkpoint()
                await self._flush()
                if not over:
                    await self._read_more()
        except OSError as exc:
            self._try_flush()
            raise self._translate(exc) from exc
        finally:
            self._sending = self._receiving = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if index(max_bytes) <= 0:
            raise ValueError(f"max_bytes must be positive, not {max_bytes}")
        if self._closed:
            raise ClosedResourceError
        if self._receiving:
            await self._take_over_reading()

        records, registration = self.records, self._registration
        self._receiving = True
        try:
            if (registration.may_read or not records.wants_more) and self._is_spent():
                await self._yield()
            fruitless = False
            while (data := records.receive(max_bytes)) is None:
                if records.wire_bytes_pending:
                    self._try_flush()
                    if records.wire_bytes_pending > _MAX_PENDING:
                        raise ssl.SSLError(ssl.SSL_ERROR_SSL, "the peer does not read the answers it asks for")
                if self._read_done is not None:
                    self._wake_readers()
                # What brings nothing is not cheap: a flood of it must not keep others waiting.
                if fruitless:
                    await self._yield()
                fruitless = True
                if not records.process_more():
                    while not (registration.may_read and self._feed()):
                        await registration.readable()
                        self._refill()
            if records.resumed:
                records.resumed = False
                self._try_flush()
        except OSError as exc:
            self._try_flush()
            # After a reset, the kernel says that the data has ended. But an alert that came before it says why.
            raise self._translate(exc) from exc if alert_of(exc) else self._broken or exc
        finally:
            self._receiving = False
            if self._read_done is not None:
                self._wake_readers()

        if not data:
            raise EndOfStream if self._broken is None else BrokenResourceError from self._broken

        self.bytes_received += len(data)
        return data

    async def send(self, item: bytes | memoryview) -> None:
        self._check_sendable()
        # The lengths below are those of bytes: of a memoryview of ints, len() counts ints.
        rest: bytes | memoryview = item if type(item) is bytes else memoryview(item).cast("B")
        given = 0
        self._sending = True
        try:
            if not rest or self._is_spent():
                await self._yield()
            if self.records.wire_bytes_pending:
                await self._flush()
            for start in range(0, len(rest), _CHUNK):
                if self.records.write_blocked:
                    await self._flush_held()
                # No more than OpenSSL's buffer should hold; it would take any amount, three times over.
                self.records.send(memoryview(rest)[start : start + _CHUNK] if len(rest) > _CHUNK else rest)
                given = start + _CHUNK
                if not self._flush_now() or self._bytes_left <= 0:
                    await self._flush()
        except OSError as exc:
            raise self._translate(exc) from exc
        finally:
            self._sending = False
            # `records` keep what OpenSSL was given and the kernel has not taken.
            self.rest = rest[given:]

    async def send_eof(self) -> None:
        if self._closed or not self._eof_sent:
            self._check_sendable()
        if self._sending:
            raise BusyResourceError("sending to")

        self._sending = True
        try:
            await checkpoint()
            await self._flush()
            if not self._eof_sent:
                self._eof_sent = True
                self.records.send_eof()
            await self._flush()
        except OSError as exc:
            raise self._translate(exc) from exc
        finally:
            self._sending = False

    async def aclose(self) -> None:
        # Under a parked sender there is no saying goodbye: half a record of its own is in the way.
        if not (self._closed or self._sending):
            self._sending = True
            try:
                # Whether there is room is not known if no task waited for it: the kernel tells.
                self._registration.may_write = True
                with suppress(OSError, BrokenResourceError, ClosedResourceError):
                    await call_until(current_time() + CLOSE_TIMEOUT, CLOSE_TIMEOUT / LOOKS, self._close_gracefully)
            finally:
                self._sending = False
                with CancelScope(shield=True):
                    await super().aclose()

        await super().aclose()

    async def _close_gracefully(self) -> None:
        if self.records.established and self._broken is None and not self._eof_sent:
            self._eof_sent = True
            self.records.send_eof()
        # No checkpoint if the kernel takes it all: somebody cancelled closes as politely.
        await self._flush()
        if self.records.write_blocked:
            await self._flush_held()
        # Tickets, and answers nobody waited for. Unread, they would make the kernel reset the connection, and
        # destroy what was sent just now.
        for _ in range(_MAX_DISCARDED // _CHUNK):
            if not self._sock.recv(_CHUNK):
                break

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {**super().extra_attributes, **attributes_of(self.records.tls)}
