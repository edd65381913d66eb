"""One payload out and verified back, on any stream.

Sending and receiving run side by side, always: a client that first sends all and then reads deadlocks on
messages larger than the kernel's buffers. Every byte is compared as it returns, and the first wrong or missing
one is named. How the stream was connected, and what is done with the echo, others know.
"""

from __future__ import annotations

__all__ = ("Exchange", "tell")

import logging
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager

from anyio import (
    BrokenResourceError,
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    Event,
    create_task_group,
    current_time,
    sleep,
)
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import checkpoint

from anyecho.clock import LOOKS, LoopClock
from anyecho.errors import AnyechoError, EchoMismatch, EchoStalled, EchoTruncated, bare_errors
from anyecho.measure.source import Source, items_of
from anyecho.net.pending import is_ready
from anyecho.net.tls_connect import connect_error, is_refusal
from anyecho.net.tls_errors import explain
from anyecho.transcript import shorten
from anyecho.units import format_duration, format_size

logger = logging.getLogger("anyecho.client")

#: Sent and not yet back, at most: it is kept for comparing. A slow reader of the echo would otherwise make the
#: client keep all that both kernels can hold, which is tens of MiB.
_WINDOW = 8 << 20
#: Larger items go in several writes, so that it shows when they move, also to a slow reader.
_WRITE = 1 << 14


class Exchange:
    """Sends a source and verifies its echo, once.

    With a `total` it is over when so many bytes are back, and the stream can be used again. Without, the stream
    is half-closed after the last item, and it is over when the peer has closed too.
    """

    def __init__(
        self, stream: ByteStream, source: Source, *, total: int | None = None, address: str | None = None
    ) -> None:
        self._stream = stream
        #: Of a server that may still refuse the handshake.
        self._address = address
        self._source = source
        self._total = total
        #: What was sent and is not yet back, in order; of the first of them, `_head` bytes are.
        self._owed: deque[bytes] = deque()
        self._head = 0
        self._room = Event()
        #: Bytes of the current item that the stream has not been given.
        self._held_back = 0
        self._sent_all = False
        self._send_failed = False
        #: Whether the sender waits for the stream, and whether it waits for anything else: the source, mostly.
        self._sending = False
        self._source_pending = False
        self._receiving = False
        self._moved_at = 0.0
        #: Whether every byte came back equal, and none besides.
        self.complete = False
        #: Bytes given to the stream so far, and those of them that came back equal.
        self.sent = 0
        self.returned = 0

    @property
    def leaves_usable(self) -> bool:
        """Whether the stream can be used for another exchange."""
        return self.complete and self._total is not None

    @asynccontextmanager
    async def open(
        self, *, timeout: float = math.inf, deadline: float = math.inf
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Start sending; yield the verified echo, to be iterated over as it returns.

        Raises `EchoMismatch`, `EchoTruncated`, or `EchoStalled`: bytes are owed and none has moved for `timeout`
        seconds, or all of it has taken more than `deadline` seconds. Raises `ConnectError` if the server refuses
        the client, which over TLS 1.3 it does after the handshake.
        """
        with bare_errors() as whole:
            async with create_task_group() as tasks:
                watching = CancelScope()
                tasks.start_soon(self._watch, watching, timeout, deadline)
                tasks.start_soon(self._send_source)
                try:
                    async with aclosing(self._receive()) as echo:
                        yield echo
                except BaseException as exc:
                    whole.append(exc)
                    raise
                watching.cancel()
                if not self.complete:
                    tasks.cancel_scope.cancel()

    async def _send_source(self) -> None:
        async with aclosing(items_of(self._source)) as items:
            self._source_pending = True
            async for item in items:
                self._source_pending = False
                await self._send(item)
                if self._send_failed:
                    return
                self._source_pending = True

        self._sent_all = True
        self._moved_at = current_time()
        if self._total is None:
            await self._try(self._stream.send_eof())
        logger.debug("waiting for response")

    async def _send(self, item: bytes) -> None:
        tell("sending", item)
        if not item:
            self._source_pending = True
            await checkpoint()  # a source of nothing but these must not keep the loop to itself
        for start in range(0, len(item), _WRITE):
            part = item[start : start + _WRITE]
            self._held_back = len(item) - start
            while self._is_window_full(len(part)):
                await self._room.wait()
            if not self._owed:
                self._moved_at = current_time()

            # Owed before it is sent: its echo may be back before send() returns.
            self._owed.append(part)
            self.sent += len(part)
            self._held_back -= len(part)
            await self._try(self._stream.send(part))
            self._moved_at = current_time()
            if self._send_failed:
                return

    def _is_window_full(self, more: int) -> bool:
        return self._total is None and self.sent - self.returned + more > _WINDOW

    async def _try(self, sending: Awaitable[None]) -> None:
        # Not reported here: what was echoed before it broke can still be read, and says more.
        self._sending = True
        try:
            await sending
        except (BrokenResourceError, ClosedResourceError):
            self._send_failed = True
        finally:
            self._sending = False

    async def _receive(self) -> AsyncGenerator[bytes, None]:
        while self._total is None or self.returned < self._total:
            self._moved_at = current_time()
            self._receiving = True
            try:
                chunk = await self._stream.receive()
            except EndOfStream:
                await self._source_state_known()
                if self._owed or not self._sent_all:
                    raise self._truncated("the server closed the connection") from None
                break
            except BrokenResourceError as exc:
                raise self._broken(exc.__cause__ or exc) from exc
            finally:
                self._receiving = False

            tell("received", chunk)
            good = self._settle(chunk)
            if good:
                yield chunk[:good]
            if good < len(chunk):
                raise self._mismatch(chunk[good])

        self.complete = True

    async def _source_state_known(self) -> None:
        """Return once the source has ended, has given another item, or keeps the sender waiting.

        The peer may echo the last byte and close before the sender's task runs again and finds the source's end.
        """
        while not (self._owed or self._sent_all or self._send_failed or self._source_pending):
            await checkpoint()

    def _settle(self, chunk: bytes) -> int:
        """Take `chunk` off what is owed, as far as it is equal; return how far."""
        good = 0
        while good < len(chunk) and self._owed:
            owed = self._owed[0][self._head : self._head + len(chunk) - good]
            back = chunk[good : good + len(owed)]
            equal = len(back) if back == owed else next(i for i, b in enumerate(back) if b != owed[i])
            good += equal
            self._head += equal
            if self._head == len(self._owed[0]):
                self._owed.popleft()
                self._head = 0
            if equal < len(back):
                break

        self.returned += good
        self._room.set()
        self._room = Event()
        return good

    def _mismatch(self, got: int) -> EchoMismatch:
        offset = self.returned
        if not self._owed:
            return EchoMismatch(f"byte {offset} was never sent: got 0x{got:02x}", offset=offset)

        sent = self._owed[0][self._head]
        return EchoMismatch(f"byte {offset} is wrong: sent 0x{sent:02x}, got 0x{got:02x}", offset=offset)

    def _broken(self, cause: BaseException) -> AnyechoError:
        if self._address is not None and not self.returned and is_refusal(cause):
            return connect_error(self._address, cause)

        return self._truncated(f"the connection broke ({explain(cause)})")

    def _truncated(self, why: str) -> EchoTruncated:
        return EchoTruncated(f"{why}: {self._balance()}", offset=self.returned)

    def _balance(self) -> str:
        if not self._owed:
            return f"all {self.returned} bytes are back, but " + (
                "it did not end the connection" if self._sent_all else "the input has not ended"
            )

        # Whether the source has another item is not known until it gives one: nothing is said about that.
        more = ", and more was to be sent" if self._held_back else ""
        if self._is_window_full(_WRITE) and self._held_back:
            more += f" once some of these {format_size(_WINDOW)} are back"
        return f"byte {self.returned} is missing, {self.sent} were sent{more}"

    async def _watch(self, scope: CancelScope, timeout: float, deadline: float) -> None:
        """Raise `EchoStalled` once a limit is reached, measured in time for which the event loop ran.

        What has arrived by then and is not read yet gives one extension of each limit.
        """
        clock = LoopClock(min(timeout, deadline) / LOOKS)
        if math.isinf(clock.interval):
            return

        idle, over_at = 0.0, deadline
        extended, extended_for = False, -math.inf
        with scope:
            while True:
                await sleep(min(clock.interval, timeout - idle, over_at - clock.elapsed))
                idle += clock.tick()
                # A reader of the echo that takes its time is not the peer's fault; and while nothing is owed, as
                # between two lines typed at a terminal, nothing is late.
                late = self._receiving and (self._owed or self._sent_all)
                idle = min(idle, current_time() - self._moved_at) if late else 0.0
                if clock.elapsed >= over_at:
                    if extended or not self._is_ready():
                        raise EchoStalled(f"the deadline is over: {self._balance()}", offset=self.returned)
                    extended, over_at = True, clock.elapsed + deadline / LOOKS
                if idle >= timeout:
                    if extended_for == self._moved_at or not self._is_ready():
                        message = f"no byte has moved for {format_duration(timeout)}: {self._balance()}"
                        raise EchoStalled(message, offset=self.returned)
                    idle, extended_for = 0.0, self._moved_at

    def _is_ready(self) -> bool:
        """Whether a byte could move now, but the task that moves it has not run yet."""
        sock = self._stream.extra(SocketAttribute.raw_socket, None)
        return sock is not None and is_ready(sock, to_write=self._sending)


def tell(what: str, chunk: bytes) -> None:
    """A line of the conversation, for whoever wants to read it."""
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s %s", what, shorten(chunk))
