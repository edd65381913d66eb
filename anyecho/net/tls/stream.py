"""TLS streams: `PolledStream`s that encrypt and decrypt with `Records`.

A `TLSStream` has the contract of a `PolledStream`: the same errors, budget and totals (of plaintext). In addition:

* The peer's data ends with its close_notify. A FIN without it (truncation) is `BrokenResourceError`.
* `send_eof` sends close_notify and no FIN: a half-close. The peer may still send.
* The next call of any method sends what OpenSSL has queued by itself, such as an answer to a KeyUpdate. It also
  sends the rest of what a cancelled `send` has encrypted.
* OpenSSL encrypts nothing after it has read only a part of a TLS 1.3 message. One `send` still returns at once: its
  data is held, and `receive` sends it after the rest of the message. A second `send` waits for the rest, and reads
  it if no `receive` does.
* `aclose` sends close_notify and does not wait for the peer's. It takes at most `CLOSE_TIMEOUT` seconds.
"""

from __future__ import annotations

__all__ = ("CLOSE_TIMEOUT", "TLSStream")

import ssl
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from operator import index
from typing import Any

from anyio import BrokenResourceError, CancelScope, ClosedResourceError, EndOfStream, current_time
from anyio.lowlevel import checkpoint

from anyecho.clock import INTERVALS, call_until
from anyecho.net.stream import PolledStream
from anyecho.net.tls.attributes import attributes_of
from anyecho.net.tls.errors import alert_of
from anyecho.net.tls.records import CHUNK, Records
from anyecho.net.tls.transfer import TLSTransfer

#: Maximum seconds of a close, if the peer reads nothing.
CLOSE_TIMEOUT = 2.0
#: Maximum bytes of unread input to discard at a close. A peer that has sent more is likely to send on.
_MAX_DISCARDED = 1 << 20
#: Maximum bytes pending in `receive`, for a peer that makes OpenSSL answer (refuse to renegotiate, say) but does
#: not read: twice what one `send` can leave pending.
_MAX_PENDING = 2 * CHUNK


class TLSStream(TLSTransfer):
    """A TLS stream over `sock`, which is connected and non-blocking; it closes `sock`. Call `handshake` first."""

    __slots__ = ()

    @classmethod
    def wrap(cls, stream: PolledStream, records: Records) -> TLSStream:
        """Start TLS on the connection of `stream`, which must not be used any more."""
        return cls(stream._sock, stream._registration, records, budget=stream.budget)

    def without_tls(self) -> PolledStream:
        """Return a plain stream with all pending encrypted bytes as its `rest`. Do not use this stream any more."""
        stream = PolledStream(self._sock, self._registration)
        stream.rest = self.records.take()
        return stream

    async def handshake(self, step_lock: AbstractAsyncContextManager[None] | None = None) -> None:
        """Perform the handshake. If it fails, the peer has been sent an alert with the reason.

        Each step holds `step_lock`: it uses as much CPU as some hundred echoes.
        """
        self._check_sendable()
        self.sending = self._receiving = True
        done = False
        try:
            while not done:
                async with step_lock or nullcontext():
                    done = self.records.handshake()
                    # Inside the lock: all other tasks run before the next handshake takes a step.
                    await checkpoint()
                await self._flush()
                if not done:
                    await self._read_more()
        except OSError as exc:
            self._try_flush()
            raise self._translate(exc) from exc
        finally:
            self.sending = self._receiving = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if index(max_bytes) <= 0:
            raise ValueError(f"max_bytes must be positive, not {max_bytes}")
        if self._closed:
            raise ClosedResourceError
        if self._receiving:
            await self._wait_for_reading_sender()

        records, registration = self.records, self._registration
        self._receiving = True
        try:
            if (registration.may_read or not records.wants_more) and self._is_budget_spent():
                await self._yield()
            was_empty = False
            while (data := records.receive(max_bytes)) is None:
                if records.wire_bytes_pending:
                    self._send_answers()
                if self._read_done is not None:
                    self._wake_waiters()
                # Fairness: records without data cost CPU too, so yield during a flood of them.
                if was_empty:
                    await self._yield()
                was_empty = True
                # As `_read_more`, without the cost of its coroutine for each message.
                if not records.process_more():
                    while not (registration.may_read and self._feed()):
                        await registration.readable()
                        self._reset_budget()
            if records.resumed:
                records.resumed = False
                self._try_flush()
        except OSError as exc:
            self._try_flush()
            # After a reset the kernel reports EOF. An alert that came before the reset is the cause to report.
            raise self._translate(exc) from exc if alert_of(exc) else self._broken or exc
        finally:
            self._receiving = False
            if self._read_done is not None:
                self._wake_waiters()

        if not data:
            raise EndOfStream if self._broken is None else BrokenResourceError from self._broken

        self.bytes_received += len(data)
        return data

    def _send_answers(self) -> None:
        self._try_flush()
        if self.records.wire_bytes_pending > _MAX_PENDING:
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, "the peer does not read the answers it asks for")

    async def send(self, item: bytes | memoryview) -> None:
        self._check_sendable()
        # The lengths below are those of bytes: of a memoryview of ints, len() counts ints.
        rest: bytes | memoryview = item if type(item) is bytes else memoryview(item).cast("B")
        queued = 0
        self.sending = True
        try:
            if not rest or self._is_budget_spent():
                await self._yield()
            if self.records.wire_bytes_pending:
                await self._flush()
            for start in range(0, len(rest), CHUNK):
                if self.records.write_blocked:
                    await self._flush_held()
                # In chunks: OpenSSL accepts any amount, and needs three times as much memory.
                self.records.send(memoryview(rest)[start : start + CHUNK] if len(rest) > CHUNK else rest)
                queued = start + CHUNK
                if not self._flush_now() or self._bytes_left <= 0:
                    await self._flush()
        except OSError as exc:
            raise self._translate(exc) from exc
        finally:
            self.sending = False
            # `records` keeps what is encrypted and not yet taken by the kernel.
            self.rest = rest[queued:]

    def _send_rest(self) -> bool:
        if not self.records.write_blocked and self._flush_now():
            self.records.send(self.rest)
            self.rest = b""
        return not self.rest and self._flush_now()

    async def _shut_down(self) -> None:
        await self._flush()
        if not self._eof_sent:
            self._eof_sent = True
            self.records.send_eof()
        await self._flush()

    async def aclose(self) -> None:
        # While a sender waits, no close_notify is possible: a part of the sender's record may be pending.
        if not (self._closed or self.sending):
            deadline = current_time() + CLOSE_TIMEOUT
            self.sending = True
            try:
                # May be stale, as no task waits for it: try send(2).
                self._registration.may_write = True
                with suppress(OSError, BrokenResourceError, ClosedResourceError):
                    await call_until(deadline, CLOSE_TIMEOUT / INTERVALS, self._close_gracefully)
            finally:
                self.sending = False
                with CancelScope(shield=True):
                    await super().aclose()

        await super().aclose()

    async def _close_gracefully(self) -> None:
        if self.records.established and self._broken is None and not self._eof_sent:
            self._eof_sent = True
            self.records.send_eof()
        # No checkpoint if the kernel takes all: a cancelled task sends its close_notify too.
        await self._flush()
        if self.records.write_blocked:
            await self._flush_held()
        # Read tickets and late answers: with unread input, close(2) sends a reset, which may destroy what was just
        # sent.
        for _ in range(_MAX_DISCARDED // CHUNK):
            if not self._sock.recv(CHUNK):
                break

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {**super().extra_attributes, **attributes_of(self.records.tls)}
