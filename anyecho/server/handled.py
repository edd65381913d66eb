"""Connections with faults, or of a handler of the user's own, in the tasks engine.

A handler owes its peer nothing: pending is only what it is sending. Its exceptions end its connection only.
"""

from __future__ import annotations

__all__ = ("HandlerConnection",)

import logging
from collections.abc import Callable, Sequence

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream, create_task_group
from anyio.abc import ByteStream, TaskGroup

from anyecho.faults.chain import FaultChain
from anyecho.faults.fault import StreamFault
from anyecho.faults.fault import logger as fault_logger
from anyecho.faults.plan import Drawn, wrap_all
from anyecho.handlers import Handler
from anyecho.net.sockets import Socket
from anyecho.net.stream import PolledStream
from anyecho.net.tls.records import Records
from anyecho.net.tls.stream import TLSStream
from anyecho.server.connection import Engine
from anyecho.server.phases import OPEN
from anyecho.server.reasons import CloseReason
from anyecho.server.tasks import TaskConnection
from anyecho.streams import LimitReached

logger = logging.getLogger("anyecho.server")

#: Errors of the stream that a handler need not catch.
_OF_THE_STREAM = (BrokenResourceError, ClosedResourceError, EndOfStream, LimitReached)


class HandlerConnection(TaskConnection):
    __slots__ = ("_chain", "_faults", "_handler", "_handling", "_last_sent", "_redraw", "_stalled")

    end_reason = CloseReason.RETURNED

    def __init__(
        self,
        sock: Socket,
        engine: Engine,
        records: Records | None,
        handler: Handler,
        faults: Sequence[Drawn] = (),
        redraw: Callable[[], Sequence[Drawn]] | None = None,
    ) -> None:
        """`redraw` draws its faults if they may change while the connection is open."""
        super().__init__(sock, engine, records)
        self._handler = handler
        self._faults = faults
        self._redraw = redraw
        self._chain: FaultChain | None = None
        self._handling = False
        #: Bytes sent at the last check, and successive checks since then at which a send was waiting.
        self._last_sent = 0
        self._stalled = 0

    async def _serve(self, stream: PolledStream) -> None:
        self._handling = True
        if not self._faults and self._redraw is None:
            await self._handler(self._wrapped(stream))
            return

        async with create_task_group() as tasks:
            spoiled = self._spoiled(stream, tasks)
            await self._handler(self._wrapped(spoiled))
            await spoiled.send_eof()  # after the bytes that faults hold, and the delay of the close

    def _spoiled(self, stream: PolledStream, tasks: TaskGroup) -> ByteStream:
        if self._faults:
            self._log_faults()
        if self._redraw is None:
            return wrap_all(stream, self._faults, tasks)

        of_tls = [each for each in self._faults if not isinstance(each.fault, StreamFault)]
        self._chain = FaultChain(wrap_all(stream, of_tls), tasks)
        self.redraw_faults()
        return self._chain

    def redraw_faults(self) -> None:
        """Let the faults act that are drawn now. No effect before the handler runs, which draws them itself."""
        if self._chain is None or self._redraw is None or self.phase is not OPEN:
            return

        before, self._faults = self._faults, self._redraw()
        may_continue = self._chain.change(self._faults)
        if [each[:2] for each in before] != [each[:2] for each in self._faults]:
            self._log_faults()
        if not may_continue:
            self.request_close(CloseReason.FAULT)

    def _log_faults(self) -> None:
        names = ", ".join(each.fault.name for each in self._faults)
        fault_logger.info("faults: %s", names or "none", extra={"peer": self.name})

    async def _shake_hands(self, stream: TLSStream) -> None:
        for each in self._faults:
            await each.fault.before_handshake()
        await super()._shake_hands(stream)

    async def _close(self) -> None:
        stream = self._stream
        if isinstance(stream, TLSStream) and any(each.fault.omits_close_notify for each in self._faults):
            await self._linger(stream.without_tls())
        else:
            await super()._close()

    def has_pending(self) -> bool:
        stream = self._stream
        if stream is None:
            return False

        return stream.sending or bool(stream.rest or (self.records and self.records.wire_bytes_pending))

    def stalled_checks(self) -> int:
        _, sent = self.totals
        waits = sent == self._last_sent and self.has_pending()
        self._last_sent = sent
        self._stalled = self._stalled + 1 if waits else 0
        return self._stalled

    def close_reason(self, error: Exception) -> CloseReason:
        if not self._handling:
            return super().close_reason(error)

        of_the_stream, failure = ExceptionGroup("", [error]).split(_OF_THE_STREAM)
        if failure is not None:
            logger.error("the handler failed", exc_info=_single(error), extra={"peer": self.name})
            return CloseReason.HANDLER
        # A handler may leave its loop by the error that stands for EOF.
        if of_the_stream is not None and of_the_stream.split(EndOfStream)[1] is None:
            return CloseReason.RETURNED

        return super().close_reason(error)


def _single(error: BaseException) -> BaseException:
    """Return `error` without groups of one error, as `except*` makes them."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]

    return error
