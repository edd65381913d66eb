"""UDP echo on one bound socket (RFC 862; empty datagrams included).

`mmsg` and `recvfrom` make the system calls, a `Guard` decides which datagrams get a reply. A socket error is
counted by its errno name and does not end the echo.
"""

from __future__ import annotations

__all__ = ("Reflector",)

import logging
import socket
from time import monotonic
from typing import TYPE_CHECKING

from anyio import create_task_group, sleep

from anyecho.net.names import unmapped
from anyecho.net.poller import Fallback, Poller
from anyecho.net.sockets import try_set
from anyecho.net.udp.altered import AlteredEcho, Replies
from anyecho.net.udp.counts import DatagramCounts, Guard
from anyecho.net.udp.recvfrom import SingleEcho, enable_pktinfo

if TYPE_CHECKING:
    from anyecho.net.udp.mmsg import BatchEcho

logger = logging.getLogger("anyecho.server")

#: SO_RCVBUF, which the kernel caps at net.core.rmem_max. The default holds 256 small datagrams.
_QUEUE_SIZE = 4 << 20
#: Seconds before a socket that returned only errors is read again.
_RETRY_DELAY = 0.1
#: Seconds after which a burst ends: the slice of a turn of the Poller.
_BURST = 0.001
#: After a batch of fewer datagrams the receive buffer counts as empty: to read it again costs as much as an event.
_FEW = 8
#: Batches that `finish` echoes at most: more than a full receive buffer of small datagrams.
_DRAIN_BATCHES = 256

_ANY = ("0.0.0.0", "::")


class Reflector:
    """Echoes the datagrams that `guard` admits. `sock` is bound and non-blocking; its owner closes it."""

    def __init__(
        self,
        sock: socket.socket,
        guard: Guard,
        counts: DatagramCounts,
        *,
        tune: bool = True,
        replies: Replies | None = None,
    ) -> None:
        """Without `replies`, the reply to a datagram is the same datagram."""
        self.sock = sock
        self._guard = guard
        self._counts = counts
        self._stopped = False
        if tune:
            try_set(sock, socket.SOL_SOCKET, "SO_RCVBUF", _QUEUE_SIZE)
        # On a wildcard address, the source that the kernel selects by route may differ from the destination asked.
        reply_from_dst = unmapped(sock.getsockname()[0]) in _ANY and enable_pktinfo(sock)
        self._echo: BatchEcho | SingleEcho | AlteredEcho
        if replies is None:
            self._echo = _echo_class()(sock, reply_from_dst=reply_from_dst)
        else:
            self._echo = AlteredEcho(sock, replies, guard, counts, reply_from_dst=reply_from_dst)

    async def run(self, poller: Poller | Fallback) -> None:
        """Echo until cancelled or stopped."""
        if isinstance(self._echo, AlteredEcho):
            async with create_task_group() as tasks:
                tasks.start_soon(self._echo.run)
                await self._run(poller)
                tasks.cancel_scope.cancel()
        else:
            await self._run(poller)

    async def _run(self, poller: Poller | Fallback) -> None:
        while not self._stopped:
            await poller.call_while_readable(self.sock, self.echo_burst)
            await sleep(_RETRY_DELAY)

    def finish(self) -> None:
        """Echo datagrams in the receive buffer of the socket, a bounded number. The socket stays open."""
        for _ in range(_DRAIN_BATCHES):
            before = self._counts.received
            if not self.echo_batch() or self._counts.received == before:
                return

    def stop(self) -> None:
        """Echo nothing from now on. `run` ends at its next wake-up."""
        self._stopped = True

    def echo_burst(self) -> bool:
        """Echo queued datagrams for a millisecond at most. Return false if the caller has to pause. Never raises.

        Under a flood the next datagrams arrive while a batch is echoed. Waiting for their event costs a tenth of an
        echo on trio.
        """
        end = monotonic() + _BURST
        while True:
            before = self._counts.received
            if not self.echo_batch():
                return False
            if self._counts.received - before < _FEW or monotonic() > end:
                return True

    def echo_batch(self) -> bool:
        """Echo queued datagrams, at most 64. Return false if the caller has to pause. Never raises."""
        try:
            self._guard.begin_batch()
            return self._echo.echo_batch(self._guard, self._counts)
        except Exception:
            logger.exception("error while echoing datagrams")
            return False


def _echo_class() -> type[BatchEcho] | type[SingleEcho]:
    """Return `BatchEcho` where recvmmsg(2) and sendmmsg(2) are usable, else `SingleEcho`."""
    try:
        # Imported late: it needs ctypes, which is missing in a Python built without libffi.
        from anyecho.net.udp import mmsg
    except ImportError:
        return SingleEcho

    return mmsg.BatchEcho if mmsg.HAVE_MMSG else SingleEcho
