"""Datagrams back to where they came from, on a bound UDP socket (RFC 862: empty ones too).

It knows when there is something to do; how the kernel takes and gives datagrams, `mmsg` and `singly` do; whom to
answer, a guard decides. What the network does to a UDP socket is counted by its errno name and stops nothing.
"""

from __future__ import annotations

__all__ = ("Reflector",)

import logging
import socket
from typing import TYPE_CHECKING

from anyio import sleep

from anyecho.net import tuning
from anyecho.net.datagram_counts import DatagramCounts, Guard, Source
from anyecho.net.pktinfo import enable_pktinfo
from anyecho.net.poller import Fallback, Poller, call_while_readable
from anyecho.net.singly import Singly

if TYPE_CHECKING:
    from anyecho.net.mmsg import Batched

logger = logging.getLogger("anyecho.server")

#: Asked of the kernel, which gives no more than net.core.rmem_max. Its default holds 256 small datagrams.
_QUEUE_SIZE = 4 << 20
#: How long to leave a socket alone that says nothing but errors.
_BREATH = 0.1
#: Batches answered by `finish` at most: more than a full queue of small datagrams.
_LAST_BATCHES = 256

_ANY = ("0.0.0.0", "::")


class Reflector:
    """Sends back what comes to `sock`, bound and non-blocking, as far as `guard` admits it. It closes nothing."""

    def __init__(self, sock: socket.socket, guard: Guard, counts: DatagramCounts, *, tune: bool = True) -> None:
        self.sock = sock
        self._guard = _Unmapping(guard) if _is_dual(sock) else guard
        self._counts = counts
        self._stopped = False
        if tune:
            tuning.tune(sock, socket.SOL_SOCKET, "SO_RCVBUF", _QUEUE_SIZE)
        # The routing table would not always choose the address that was asked. With one address it must.
        asked = _unmapped(sock.getsockname()[0]) in _ANY and enable_pktinfo(sock)
        self._echo: Batched | Singly = _way_of_echoing()(sock, asked=asked)

    async def run(self, poller: Poller | Fallback) -> None:
        """Reflect until cancelled or stopped."""
        while not self._stopped:
            await call_while_readable(poller, self.sock, self.turn)
            await sleep(_BREATH)

    def finish(self) -> None:
        """Answer what has come already."""
        for _ in range(_LAST_BATCHES):
            before = self._counts.received
            if not self.turn() or self._counts.received == before:
                return

    def stop(self) -> None:
        """Reflect nothing from now on; `run` ends when something wakes it."""
        self._stopped = True

    def turn(self) -> bool:
        """Reflect what has come, at most 64; return whether it makes sense to go on. Never raises."""
        try:
            self._guard.begin_turn()
            return self._echo.turn(self._guard, self._counts)
        except Exception:
            logger.exception("error while echoing datagrams")
            return False


def _way_of_echoing() -> type[Batched] | type[Singly]:
    """In batches where the system calls for that can be had."""
    try:
        # Here, because it needs ctypes, which a Python built without libffi does not have.
        from anyecho.net import mmsg
    except ImportError:
        return Singly

    return mmsg.Batched if mmsg.HAVE_MMSG else Singly


class _Unmapping:
    """Judges IPv4 peers of an IPv6 socket by what they are: ``::ffff:192.0.2.1`` is 192.0.2.1 (RFC 4291)."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.begin_turn = guard.begin_turn

    def admit(self, source: Source) -> bool:
        return self._guard.admit((_unmapped(source[0]), source[1]))

    def refuse(self, source: Source) -> None:
        self._guard.refuse((_unmapped(source[0]), source[1]))


def _unmapped(host: str) -> str:
    return host.removeprefix("::ffff:") if "." in host else host


def _is_dual(sock: socket.socket) -> bool:
    """Whether it hears IPv4 too. Ours never do; one that a service manager has bound may."""
    return sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
