"""The I/O of a `TLSStream`: move encrypted bytes between the socket and `Records`.

One task reads at a time. Usually it is a receiver; a sender reads if OpenSSL needs the rest of a message before it
encrypts. Meanwhile the other one waits.
"""

from __future__ import annotations

__all__ = ("TLSTransfer",)

import socket
import ssl
from contextlib import suppress

from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError, Event

from anyecho.net.readiness import Registration
from anyecho.net.stream import PolledStream
from anyecho.net.tls.records import WIRE_CHUNK, Records


class TLSTransfer(PolledStream):
    """The socket and the budget of a `PolledStream`, with `records` between the socket and the caller."""

    __slots__ = ("_read_done", "_sender_reads", "records")

    def __init__(
        self, sock: socket.socket, registration: Registration, records: Records, *, budget: int = 1
    ) -> None:
        super().__init__(sock, registration, budget=budget)
        self.records = records
        self.bytes_sent = records.plaintext_sent
        #: Whether the task that reads is a sender.
        self._sender_reads = False
        #: Set when the task that reads has read something. None unless another task waits for it.
        self._read_done: Event | None = None

    async def _flush_held(self) -> None:
        """Return when all held plaintext is sent. Read the rest of the peer's message, unless a receiver does."""
        records = self.records
        while records.write_blocked:
            if self._broken is not None:
                raise BrokenResourceError from self._broken
            if self._receiving:
                await self._wait_for_read()
            else:
                await self._read_as_sender()
            await self._flush()

    async def _read_as_sender(self) -> None:
        self._receiving = self._sender_reads = True
        try:
            await self._read_more()
            self.records.resume()
            if self.records.write_blocked:
                await self._yield()
        except OSError:
            self._try_flush()
            raise
        finally:
            self._receiving = self._sender_reads = False
            self._wake_waiters()

    async def _wait_for_reading_sender(self) -> None:
        """Wait until no sender reads. A sender reads once and goes on.

        Raises `BusyResourceError` if a receiver reads, or `ClosedResourceError` if the stream was closed meanwhile.
        """
        while self._receiving:
            if not self._sender_reads:
                raise BusyResourceError("receiving from")

            await self._wait_for_read()
        if self._closed:
            raise ClosedResourceError

    async def _wait_for_read(self) -> None:
        self._read_done = self._read_done or Event()
        await self._read_done.wait()

    def _wake_waiters(self) -> None:
        if self._read_done is not None:
            self._read_done.set()
            self._read_done = None

    async def _read_more(self) -> None:
        """Wait for more input and pass it to OpenSSL."""
        if not self.records.process_more():
            while not (self._registration.may_read and self._feed()):
                await self._registration.readable()
                self._reset_budget()

    def _feed(self) -> bool:
        """Pass more input to OpenSSL without waiting; return whether there was any."""
        registration = self._registration
        try:
            data = self._sock.recv(WIRE_CHUNK)
        except BlockingIOError:
            registration.may_read = False
            return False

        if not data:
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "it ended without a close_notify")

        if len(data) < WIRE_CHUNK and registration.short_read_drains:
            registration.may_read = False
        self._bytes_left -= len(data)
        self.records.feed(data)
        return True

    async def _flush(self) -> None:
        """Send all pending bytes. If cancelled, the rest stays pending."""
        while not self._flush_now():
            await self._registration.writable()
            self._reset_budget()
        if self._bytes_left <= 0:
            await self._yield()

    def _flush_now(self) -> bool:
        """Send as much as the kernel takes; return whether nothing is pending any more."""
        records, registration = self.records, self._registration
        previous, done = self.bytes_sent, False
        try:
            while not done and registration.may_write:
                done = records.flush(self._sock.send)
        except BlockingIOError:
            registration.may_write = False
        finally:
            self.bytes_sent = records.plaintext_flushed if done else records.plaintext_sent
            self._bytes_left -= self.bytes_sent - previous

        return done or not records.wire_bytes_pending

    def _try_flush(self) -> None:
        # A receiver ignores write errors: data that arrived before may still be read.
        self._registration.may_write = True  # may be stale, as no task waits for it: try send(2)
        with suppress(OSError):
            self._flush_now()
