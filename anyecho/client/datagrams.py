"""Send the items of a source as datagrams and verify the replies.

A window limits what is outstanding. `DatagramMatcher` decides which datagram a reply belongs to.
"""

from __future__ import annotations

__all__ = ("DatagramExchange",)

import errno
import logging
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing

from anyio import BrokenResourceError, CancelScope, Event, current_time
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint

from anyecho.client.matcher import DatagramMatcher, RecentDatagrams
from anyecho.client.source import Source, items_of
from anyecho.clock import INTERVALS, LoopClock
from anyecho.errors import AnyechoError, ConnectError, EchoLost, EchoStalled, UsageError
from anyecho.net.readiness import is_ready
from anyecho.net.resolve import most_telling
from anyecho.net.udp.stream import DATAGRAM_MAX, DatagramStream
from anyecho.streams import log_chunk
from anyecho.units import format_duration

logger = logging.getLogger("anyecho.client")

#: Maximum of outstanding datagrams, and of their bytes: the kernel's default receive buffer at either end holds 256
#: small datagrams, or three of the largest.
_WINDOW = 64
_WINDOW_BYTES = 1 << 16
#: Errors for an address without a server. Another address of the same name may have one.
_UNREACHABLE = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH})


class DatagramExchange:
    """Sends every item of `source` as one datagram and verifies the replies, once.

    A datagram without a reply in time counts as lost; the exchange goes on with the next.
    """

    def __init__(self, stream: DatagramStream, source: Source, timeout: float, recent: RecentDatagrams) -> None:
        self._stream = stream
        self._source = source
        self._timeout = timeout
        self._window_freed = Event()
        self._sent_all = False
        self._is_sending = False
        self._failures: list[OSError] = []
        self._waiting = CancelScope()
        self.matcher = DatagramMatcher(recent)
        #: Whether every datagram was answered. Then no late reply can match a datagram of another exchange.
        self.complete = False

    async def attempt(self, payload: bytes, deadline: float) -> bool:
        """Exchange `payload`, the only item of the source, in this task. Return false if there is a deadline.

        Raises the errors of `send_source` and `receive`.
        """
        if math.isinf(deadline):
            await self._send(payload)
            self._sent_all = True
            async for _ in self.receive():
                pass

        return self.complete

    async def watch(self, scope: CancelScope, deadline: float) -> None:
        """Raise `EchoStalled` if the exchange takes more than `deadline` seconds, until `scope` is cancelled."""
        clock = LoopClock(deadline / INTERVALS)
        with scope:
            await clock.wait_until(deadline)
            if is_ready(self._stream.extra(SocketAttribute.raw_socket)):
                # Replies that have arrived by then are still read: the receiving task may not have run since.
                await clock.wait_until(clock.elapsed + clock.interval)
            progress = f"{self.matcher.answered} of {self.matcher.sent} datagrams are back"
            raise EchoStalled(f"the deadline is over: {progress}", offset=self.matcher.first_missing)

    async def send_source(self) -> None:
        """Send the items. Raises `ConnectError`, the errors of the source, and `UsageError`.

        An item is wrong if it is no buffer, or too large for a datagram.
        """
        async with aclosing(items_of(self._source)) as items:
            async for item in items:
                await self._send(item)

        self._sent_all = True
        self._rearm()
        logger.debug("waiting for response")

    async def _send(self, item: bytes) -> None:
        while self._is_window_full(len(item)):
            self._window_freed = Event()
            await self._window_freed.wait()

        log_chunk(logger, "sending", item)
        # Outstanding before it is sent: its reply may be back before send() returns. The timeout begins after it
        # was sent: the send may have to wait, and the loop may be blocked meanwhile.
        number = self.matcher.expect(item)
        self._is_sending = True
        try:
            await self._stream.send(item)
        except BrokenResourceError as exc:
            self._is_sending = False  # `_reconnect` resends all outstanding datagrams
            if isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EMSGSIZE:
                what = f"a message of {len(item)} bytes is too large for a datagram"
                raise UsageError(f"{what}, which holds at most {DATAGRAM_MAX} bytes") from exc
            await self._reconnect(exc)
        finally:
            self._is_sending = False

        self.matcher.set_expiry(number, current_time() + self._timeout)
        self._rearm()

    async def _reconnect(self, exc: BrokenResourceError) -> None:
        """Resend outstanding datagrams to the next address of the server, if the current one is unreachable.

        Raises the error of the exchange if there is none. The datagram of a pending send is left out: that send
        goes on with the new socket.
        """
        if isinstance(exc.__cause__, OSError) and exc.__cause__.errno in _UNREACHABLE:
            self._failures.append(exc.__cause__)
            outstanding = self.matcher.datagrams
            if await self._stream.reconnect(outstanding[:-1] if self._is_sending else outstanding):
                return

        raise self._translate(exc) from exc

    def _is_window_full(self, more: int) -> bool:
        outstanding = len(self.matcher)
        return outstanding >= _WINDOW or (outstanding > 0 and self.matcher.bytes_outstanding + more > _WINDOW_BYTES)

    async def receive(self) -> AsyncGenerator[bytes, None]:
        """Yield the verified replies, in order of arrival and without duplicates.

        Raises `EchoLost` after the last reply if any datagram had none within `timeout` seconds. Raises at once:
        `EchoMismatch`; `ConnectError` if the server is unreachable, or `EchoLost` if it became so after a reply.
        """
        while True:
            # Read before the socket: a datagram due after `now` must not expire before the socket is read again.
            now = current_time()
            try:
                reply = self._stream.receive_nowait()
            except BrokenResourceError as exc:
                await self._reconnect(exc)
                continue

            if reply is not None:
                log_chunk(logger, "received", reply)
                if self.matcher.match(reply):
                    self._window_freed.set()
                    yield reply
                await checkpoint()  # a flooding peer must not starve other tasks
                continue

            # After the socket is empty: a reply that came in time and is read late is not lost.
            self.matcher.expire(now)
            self._window_freed.set()
            if self._sent_all and not self.matcher:
                break
            with CancelScope() as self._waiting:
                self._rearm()
                await self._stream.readable()

        if self.matcher.lost:
            within = f"no answer within {format_duration(self._timeout)}"
            raise EchoLost(f"{self.matcher} ({within})", offset=self.matcher.first_missing)

        self.complete = True
        if self.matcher.duplicates or self.matcher.reordered:
            logger.warning("%s", self.matcher)

    def _rearm(self) -> None:
        """Wake the receiver at the next expiry, or now if nothing is outstanding and all is sent."""
        self._waiting.deadline = self.matcher.next_expiry
        if self._sent_all and not self.matcher:
            self._waiting.cancel()

    def _translate(self, exc: BrokenResourceError) -> AnyechoError:
        failure = most_telling(self._failures) if self._failures else exc.__cause__
        why = getattr(failure, "strerror", exc)
        if self.matcher.answered:
            progress = f"{self.matcher.answered} of {self.matcher.sent} datagrams are back"
            return EchoLost(f"{why}: {progress}", offset=self.matcher.first_missing)

        return ConnectError(f"cannot reach {self._stream.address}: {why}")
