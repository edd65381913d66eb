"""Datagrams out and matched back: a source's items to a connected UDP socket, and the replies to whoever asked.

How the stream was connected, and what is done with the replies, others know; which reply is whose, the ledger.
"""

from __future__ import annotations

__all__ = ("DatagramExchange",)

import errno
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from anyio import BrokenResourceError, CancelScope, Event, create_task_group, current_time
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint

from anyecho.address import UDPAddress
from anyecho.clock import LOOKS, LoopClock
from anyecho.errors import AnyechoError, ConnectError, EchoLost, EchoStalled, UsageError, bare_errors
from anyecho.measure.exchange import tell
from anyecho.measure.ledger import Ledger, Settled
from anyecho.measure.source import Source, items_of
from anyecho.net.datagram_stream import DATAGRAM_MAX, DatagramStream
from anyecho.net.names import most_telling
from anyecho.net.pending import is_ready
from anyecho.units import format_duration

logger = logging.getLogger("anyecho.client")

#: Datagrams on their way at a time, and bytes of them: the kernel's default queue at either end holds 256 small
#: ones, or three of the largest.
_WINDOW = 64
_WINDOW_BYTES = 1 << 16
#: What the network says of an address where no server is; another address of the same name may have one.
_UNREACHABLE = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH})


class DatagramExchange:
    """Sends every item of `source` as a datagram of its own and verifies the replies, once.

    A datagram that is not answered in time is lost; the exchange goes on with the others.
    """

    def __init__(self, stream: DatagramStream, source: Source, settled: Settled) -> None:
        self._stream = stream
        self._source = source
        self._timeout = math.inf
        self._room = Event()
        self._sent_all = False
        self._is_sending = False
        self._failures: list[OSError] = []
        self._waiting = CancelScope()
        self.ledger = Ledger(settled)
        #: Whether every datagram was answered.
        self.complete = False

    @property
    def leaves_usable(self) -> bool:
        """Whether no answer is still to come that could be taken for one of another exchange."""
        return self.complete

    @asynccontextmanager
    async def open(
        self, *, timeout: float = math.inf, deadline: float = math.inf
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Start sending; yield the verified replies, to be iterated over as they come, each of them once.

        Raises `EchoLost` after the last one if any datagram had no answer within `timeout` seconds; at once
        `EchoMismatch`, `EchoStalled` if all of it takes more than `deadline` seconds, `ConnectError` if nobody is
        there, and `UsageError` for an item that no datagram can hold.
        """
        self._timeout = timeout
        with bare_errors() as whole:
            async with create_task_group() as tasks:
                tasks.start_soon(self._watch, deadline)
                tasks.start_soon(self._send_source)
                try:
                    async with aclosing(self._receive()) as replies:
                        yield replies
                except BaseException as exc:
                    whole.append(exc)
                    raise
                tasks.cancel_scope.cancel()

    async def _watch(self, deadline: float) -> None:
        if not math.isinf(deadline):
            clock = LoopClock(deadline / LOOKS)
            await clock.reach(deadline)
            if is_ready(self._stream.extra(SocketAttribute.raw_socket)):
                # What has arrived by then is still read: the receiver may have had no turn since.
                await clock.reach(clock.elapsed + clock.interval)
            balance = f"{self.ledger.answered} of {self.ledger.sent} datagrams are back"
            raise EchoStalled(f"the deadline is over: {balance}", offset=self.ledger.first_missing)

    async def _send_source(self) -> None:
        async with aclosing(items_of(self._source)) as items:
            async for item in items:
                await self._send(item)

        self._sent_all = True
        self._rearm()
        logger.debug("waiting for response")

    async def _send(self, item: bytes) -> None:
        while self._is_window_full(len(item)):
            await self._room.wait()

        tell("sending", item)
        # Owed before it is sent: its reply may be back before send() returns. Late only after it was sent: the send
        # may have to wait, and the loop may be blocked meanwhile.
        number = self.ledger.owe(item)
        self._is_sending = True
        try:
            await self._stream.send(item)
        except BrokenResourceError as exc:
            self._is_sending = False  # it is sent again with the others, if at all
            if isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EMSGSIZE:
                what = f"a message of {len(item)} bytes is too large for a datagram"
                raise UsageError(f"{what}, which holds at most {DATAGRAM_MAX} bytes") from exc
            if not await self._reconnect(exc):
                raise self._translate(exc) from exc
        finally:
            self._is_sending = False

        self.ledger.set_late_at(number, current_time() + self._timeout)
        self._rearm()

    async def _reconnect(self, exc: BrokenResourceError) -> bool:
        """Send what is owed to another address of the server if this one is unreachable and has answered nothing.

        The datagram that is being sent is owed already; the call that sends it does so on the new socket.
        """
        if not isinstance(exc.__cause__, OSError) or exc.__cause__.errno not in _UNREACHABLE:
            return False

        self._failures.append(exc.__cause__)
        owed = self.ledger.datagrams
        return await self._stream.reconnect(owed[:-1] if self._is_sending else owed)

    def _is_window_full(self, more: int) -> bool:
        owed = len(self.ledger)
        return owed >= _WINDOW or (owed > 0 and self.ledger.bytes_owed + more > _WINDOW_BYTES)

    async def _receive(self) -> AsyncGenerator[bytes, None]:
        while True:
            # Before the socket is looked at: a reply that comes later is judged the next time.
            now = current_time()
            if (reply := await self._try_to_receive()) is not None:
                tell("received", reply)
                if self.ledger.settle(reply):
                    self._make_room()
                    yield reply
                await checkpoint()  # a peer that floods must not keep the loop to itself
                continue

            # Only now: what came in time and is read late is not lost.
            self.ledger.give_up(now)
            self._make_room()
            if self._sent_all and not self.ledger:
                break
            with CancelScope() as self._waiting:
                self._rearm()
                await self._stream.readable()

        self._sum_up()

    async def _try_to_receive(self) -> bytes | None:
        while True:
            try:
                return self._stream.receive_nowait()
            except BrokenResourceError as exc:
                if not await self._reconnect(exc):
                    raise self._translate(exc) from exc

    def _make_room(self) -> None:
        self._room.set()
        self._room = Event()

    def _rearm(self) -> None:
        """Let the receiver wake up when a datagram is late, and at once when there is none and will be none."""
        self._waiting.deadline = self.ledger.next_late_at
        if self._sent_all and not self.ledger:
            self._waiting.cancel()

    def _sum_up(self) -> None:
        if self.ledger.lost:
            within = f"no answer within {format_duration(self._timeout)}"
            raise EchoLost(f"{self.ledger} ({within})", offset=self.ledger.first_missing)

        self.complete = True
        if self.ledger.duplicates or self.ledger.reordered:
            logger.warning("%s", self.ledger)

    def _translate(self, exc: BrokenResourceError) -> AnyechoError:
        failure = most_telling(self._failures) if self._failures else exc.__cause__
        why = getattr(failure, "strerror", exc)
        if self.ledger.answered:
            balance = f"{self.ledger.answered} of {self.ledger.sent} datagrams are back"
            return EchoLost(f"{why}: {balance}", offset=self.ledger.first_missing)

        host, port, *_ = self._stream.extra(SocketAttribute.raw_socket).getpeername()
        return ConnectError(f"cannot reach {self._stream.address or UDPAddress(host=host, port=port)}: {why}")
