"""Send a payload on any byte stream and verify its echo.

Sending and receiving are concurrent: a client that first sends all and then reads deadlocks on messages larger than
the kernel's buffers. Every byte is compared as it returns, and an error gives the offset of the first wrong or
missing byte.
"""

from __future__ import annotations

__all__ = ("Exchange",)

import logging
import math
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing

from anyio import BrokenResourceError, CancelScope, ClosedResourceError, EndOfStream, Event, current_time, sleep
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import checkpoint

from anyecho.client.matcher import OutstandingBytes
from anyecho.client.source import Source, items_of
from anyecho.clock import INTERVALS, LoopClock
from anyecho.errors import AnyechoError, EchoMismatch, EchoStalled, EchoTruncated
from anyecho.net.readiness import is_ready
from anyecho.net.stream import PolledStream
from anyecho.net.tls.connect import connect_error, is_refusal
from anyecho.net.tls.errors import explain
from anyecho.streams import log_chunk
from anyecho.units import format_duration, format_size

logger = logging.getLogger("anyecho.client")

#: Maximum of outstanding bytes, which are kept for the comparison. Without it, a slow reader of the echo would make
#: the client keep all that both kernels can buffer, which is tens of MiB.
_WINDOW = 8 << 20
#: Larger items are sent in several writes, so that progress is seen, also with a slow reader.
_WRITE = 1 << 14
#: Larger payloads are not attempted: the tasks are a small part of their cost.
_ATTEMPT_MAX = 1 << 16


class Exchange:
    """Sends a source and verifies its echo, once. Its owner runs `watch` and `send_source` beside `receive`.

    With `total`, the exchange ends when that many bytes are back, and the stream can be used again. Without, the
    stream is half-closed after the last item, and the exchange ends when the peer has closed too.
    """

    def __init__(
        self, stream: ByteStream, source: Source, timeout: float, *, total: int | None, address: str | None
    ) -> None:
        self._stream = stream
        self._timeout = timeout
        #: Address of a server that may still refuse the handshake, else None.
        self._address = address
        self._source = source
        self._total = total
        self._outstanding = OutstandingBytes()
        self._window_freed = Event()
        #: Bytes of the current item not yet given to the stream.
        self._unsent = 0
        self._sent_all = False
        self._send_failed = False
        #: Whether the sender waits for the stream; and whether it waits for the source.
        self._sending = False
        self._source_pending = False
        self._receiving = False
        self._progress_at = 0.0
        self._clock: LoopClock | None = None  # begins with `attempt`
        #: Whether every byte came back equal, without surplus bytes.
        self.complete = False

    @property
    def returned(self) -> int:
        """The bytes that came back equal so far."""
        return self._outstanding.returned

    async def attempt(self, payload: bytes, deadline: float) -> bool:
        """Exchange `payload`, the only item of the source, without further tasks. Return whether it is complete.

        If not, because the kernel does not take all at once, or after an interval of the clock, tasks go on, and
        `watch` judges the limits. The other errors are those of `receive`.
        """
        stream = self._stream
        if not (isinstance(stream, PolledStream) and 0 < len(payload) <= _ATTEMPT_MAX):
            return False

        self._clock = LoopClock(min(self._timeout, deadline) / INTERVALS)
        log_chunk(logger, "sending", payload)
        self._sent_all = stream.send_nowait(payload)
        self._source = (stream.rest,) if stream.rest else ()
        self._unsent = len(stream.rest)
        if taken := payload[: len(payload) - self._unsent]:
            self._outstanding.expect(taken)
        self._progress_at = current_time()
        if self._sent_all:
            with CancelScope(deadline=self._progress_at + self._clock.interval):
                async for _ in self.receive():
                    pass

        return self.complete

    async def send_source(self) -> None:
        """Send the items. A failure to send is not raised: `receive` raises what the peer's echo shows of it.

        Raises the errors of the source, and `UsageError` for an item that is no buffer.
        """
        if self._outstanding.sent:  # by `attempt`, which over TLS may have left encrypted bytes
            await self._try(self._stream.send(b""))
        async with aclosing(items_of(self._source)) as items:
            self._source_pending = True
            async for item in items:
                self._source_pending = False
                await self._send(item)
                if self._send_failed:
                    return
                self._source_pending = True

        self._sent_all = True
        if self._total is None:
            self._progress_at = current_time()
            await self._try(self._stream.send_eof())
        logger.debug("waiting for response")

    async def _send(self, item: bytes) -> None:
        log_chunk(logger, "sending", item)
        if not item:
            self._source_pending = True
            await checkpoint()  # a source of empty items must not starve other tasks
        for start in range(0, len(item), _WRITE):
            part = item[start : start + _WRITE]
            self._unsent = len(item) - start
            while self._is_window_full(len(part)):
                self._window_freed = Event()
                await self._window_freed.wait()
            if not self._outstanding:
                self._progress_at = current_time()

            # Outstanding before it is sent: its echo may be back before send() returns.
            self._outstanding.expect(part)
            self._unsent -= len(part)
            await self._try(self._stream.send(part))
            self._progress_at = current_time()
            if self._send_failed:
                return

    def _is_window_full(self, more: int) -> bool:
        return self._total is None and len(self._outstanding) + more > _WINDOW

    async def _try(self, sending: Awaitable[None]) -> None:
        # Not raised here: echo from before the failure can still be read, and its error says more.
        self._sending = True
        try:
            await sending
        except (BrokenResourceError, ClosedResourceError):
            self._send_failed = True
        finally:
            self._sending = False

    async def receive(self) -> AsyncGenerator[bytes, None]:
        """Yield the verified echo in chunks.

        Raises `EchoMismatch` or `EchoTruncated`, and `ConnectError` if the server refuses the client, which over
        TLS 1.3 happens after the handshake.
        """
        outstanding = self._outstanding
        while self._total is None or outstanding.returned < self._total:
            self._receiving = True
            try:
                chunk = await self._stream.receive()
            except EndOfStream:
                await self._source_state_known()
                if outstanding or not self._sent_all:
                    raise self._truncated("the server closed the connection") from None
                break
            except BrokenResourceError as exc:
                raise self._broken(exc.__cause__ or exc) from exc
            finally:
                self._receiving = False

            log_chunk(logger, "received", chunk)
            good = outstanding.match(chunk)
            self._window_freed.set()
            if good:
                yield chunk[:good]
                self._progress_at = current_time()
            if good < len(chunk):
                raise self._mismatch(chunk[good])

        self.complete = True

    async def _source_state_known(self) -> None:
        """Return once the source has ended, has given another item, or keeps the sender waiting.

        The peer may echo the last byte and close before the sender's task runs again and finds the source's end.
        """
        while not (self._outstanding or self._sent_all or self._send_failed or self._source_pending):
            await checkpoint()

    def _mismatch(self, got: int) -> EchoMismatch:
        expected = self._outstanding.next_byte
        text = "was never sent: " if expected is None else f"is wrong: sent 0x{expected:02x}, "
        return EchoMismatch(f"byte {self.returned} {text}got 0x{got:02x}", offset=self.returned)

    def _broken(self, cause: BaseException) -> AnyechoError:
        if self._address is not None and not self.returned and is_refusal(cause):
            return connect_error(self._address, cause)

        return self._truncated(f"the connection broke ({explain(cause)})")

    def _truncated(self, why: str) -> EchoTruncated:
        return EchoTruncated(f"{why}: {self._progress()}", offset=self.returned)

    def _progress(self) -> str:
        if not (self._outstanding or self._unsent):
            why = "the server did not end the connection" if self._sent_all else "the input has not ended"
            return f"all {self.returned} bytes are back, but {why}"

        # It is not known whether the source has another item, so only the current item counts.
        more = ", and more was to be sent" if self._unsent else ""
        if self._is_window_full(_WRITE) and self._unsent:
            more += f" once some of these {format_size(_WINDOW)} are back"
        return f"byte {self.returned} is missing, {self._outstanding.sent} were sent{more}"

    async def watch(self, scope: CancelScope, deadline: float) -> None:
        """Raise `EchoStalled` once a limit is reached, until `scope` is cancelled.

        The limits are that echo is outstanding and no byte has moved for `timeout` seconds, and that the exchange
        takes more than `deadline` seconds, in time for which the event loop ran. Bytes that have arrived by then
        and are not read yet extend each limit once.
        """
        clock = self._clock or LoopClock(min(self._timeout, deadline) / INTERVALS)
        if math.isinf(clock.interval):
            return

        idle, over_at = 0.0, deadline
        extended, extended_for = False, -math.inf
        with scope:
            while True:
                await sleep(min(clock.interval, self._timeout - idle, over_at - clock.elapsed))
                idle += clock.tick()
                # The stall timer runs only while a receive is pending and echo is outstanding. It stops for a slow
                # reader of the echo, and between two lines typed at a terminal.
                stalled = self._receiving and (self._outstanding or self._sent_all)
                idle = min(idle, current_time() - self._progress_at) if stalled else 0.0
                if clock.elapsed >= over_at:
                    if extended or not self._is_ready():
                        raise EchoStalled(f"the deadline is over: {self._progress()}", offset=self.returned)
                    extended, over_at = True, clock.elapsed + deadline / INTERVALS
                if idle >= self._timeout:
                    if extended_for == self._progress_at or not self._is_ready():
                        message = f"no byte has moved for {format_duration(self._timeout)}: {self._progress()}"
                        raise EchoStalled(message, offset=self.returned)
                    idle, extended_for = 0.0, self._progress_at

    def _is_ready(self) -> bool:
        # The task that waits for the socket may not have run yet.
        sock = self._stream.extra(SocketAttribute.raw_socket, None)
        return sock is not None and is_ready(sock, to_write=self._sending)
