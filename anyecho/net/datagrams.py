"""Datagrams back to where they came from, straight on a bound UDP socket (RFC 862: empty ones too).

It knows the kernel's ways to say who asked and which address was asked; whom to answer, a guard decides. What the
network does to a UDP socket is counted by its errno name and stops nothing.
"""

from __future__ import annotations

__all__ = ("DatagramCounts", "Guard", "Reflector", "network_of")

import errno
import logging
import socket
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Protocol, TypeAlias

from anyio import Event, sleep

from anyecho.net.poller import Fallback, PolledRegistration, Poller

logger = logging.getLogger("anyecho.server")

#: What recvfrom(2) says of a peer: (host, port), for IPv6 (host, port, flow, scope).
Source: TypeAlias = tuple[Any, ...]

#: Datagrams taken in one wake-up, before others have their turn: about 0.4 ms.
_BATCH = 64
#: The largest datagram has 65535 bytes, its headers included; so none is ever cut.
_BUFFER_SIZE = 65536
#: Asked of the kernel, which gives no more than net.core.rmem_max. Its default holds 256 small datagrams.
_QUEUE_SIZE = 4 << 20
#: How long to leave a socket alone that says nothing but errors.
_BREATH = 0.1
#: Batches answered by `finish` at most: more than a full queue of small datagrams.
_LAST_BATCHES = 256

_ANY = ("0.0.0.0", "::")
#: Not in Python's socket module before 3.14.
_IP_PKTINFO: int = getattr(socket, "IP_PKTINFO", 8 if sys.platform == "linux" else -1)
_IPV6_PKTINFO: int = getattr(socket, "IPV6_PKTINFO", -1)


@dataclass(eq=False)
class DatagramCounts:
    """What became of datagrams. `dropped` counts by the guard's reasons, `errors` by errno name.

    ``EAGAIN`` is an answer that the kernel had no room for.
    """

    received: int = 0
    echoed: int = 0
    bytes_received: int = 0
    bytes_echoed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


class Guard(Protocol):
    """Decides whom to answer."""

    def begin_turn(self) -> None:
        """Several datagrams come now, which may be judged by one look at the clock."""

    def admit(self, source: Source) -> bool:
        """Whether to answer `source`; if not, the guard has counted why."""

    def refuse(self, source: Source) -> None:
        """`source` was admitted, but an answer would have gone to many, or from many."""


class Reflector:
    """Sends back what comes to `sock`, bound and non-blocking, as far as `guard` admits it. It closes nothing."""

    def __init__(self, sock: socket.socket, guard: Guard, counts: DatagramCounts, *, tune: bool = True) -> None:
        self.sock = sock
        self._guard = guard
        self._counts = counts
        self._view = memoryview(bytearray(_BUFFER_SIZE))
        #: The address that the last datagram was sent to, as the kernel wants it back.
        self._asked: list[tuple[int, int, bytes]] = []
        self._receive: Callable[[], tuple[int, Source]] = partial(sock.recvfrom_into, self._view)
        self._answer: Callable[[memoryview, Source], int] = sock.sendto
        if tune:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _QUEUE_SIZE)
        # A socket of one address need not be told: recvmsg(2) costs a quarter more than recvfrom(2).
        if sock.getsockname()[0] in _ANY:
            self._learn_who_was_asked()

    def _learn_who_was_asked(self) -> None:
        """Answer from the address that was asked, which the routing table would not always choose."""
        if self.sock.family == socket.AF_INET and _IP_PKTINFO >= 0:
            self.sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            self._receive, self._answer = self._receive_asked4, self._answer_asked
        elif self.sock.family == socket.AF_INET6 and _IPV6_PKTINFO >= 0:
            self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            self._receive, self._answer = self._receive_asked6, self._answer_asked

    async def run(self, poller: Poller | Fallback) -> None:
        """Reflect until cancelled."""
        registration = poller.register(self.sock)
        try:
            while True:
                if isinstance(registration, PolledRegistration):
                    await self._reflect_by_callback(registration)
                else:
                    while self.turn():
                        registration.may_read = False
                        await registration.readable()

                await sleep(_BREATH)
        finally:
            await registration.aclose()

    async def _reflect_by_callback(self, registration: PolledRegistration) -> None:
        paused = Event()

        def on_event() -> None:
            if not self.turn():
                registration.pause()
                paused.set()

        registration.on_event(on_event)
        await paused.wait()

    def finish(self) -> None:
        """Answer what has come already."""
        for _ in range(_LAST_BATCHES):
            before = self._counts.received
            if not self.turn() or self._counts.received == before:
                return

    def turn(self) -> bool:
        """Reflect what has come, at most 64; return whether it makes sense to go on. Never raises."""
        try:
            return self._turn()
        except Exception:
            logger.exception("error while echoing datagrams")
            return False

    def _turn(self) -> bool:
        # Locals: this loop is what an echoed datagram costs, beside its two system calls.
        receive, admit, answer, view = self._receive, self._guard.admit, self._answer, self._view
        received = echoed = bytes_received = bytes_echoed = failed = 0
        self._guard.begin_turn()
        try:
            for _ in range(_BATCH):
                try:
                    size, source = receive()
                except BlockingIOError:
                    break
                except OSError as exc:
                    self._count(exc)
                    failed += 1
                    continue

                received += 1
                bytes_received += size
                if admit(source):
                    try:
                        answer(view[:size], source)
                    except OSError as exc:
                        self._count_unanswered(exc, source)
                    else:
                        echoed += 1
                        bytes_echoed += size
        finally:
            counts = self._counts
            counts.received += received
            counts.echoed += echoed
            counts.bytes_received += bytes_received
            counts.bytes_echoed += bytes_echoed

        return failed < _BATCH

    def _count(self, exc: OSError) -> None:
        self._counts.errors[errno.errorcode.get(exc.errno or 0, str(exc.errno))] += 1

    def _count_unanswered(self, exc: OSError, source: Source) -> None:
        # SO_BROADCAST is never set, so the kernel refuses the broadcast addresses of every network it is on.
        if exc.errno == errno.EACCES:
            self._guard.refuse(source)
        else:
            self._count(exc)

    def _receive_asked4(self) -> tuple[int, Source]:
        size, (ancillary,), _, source = self.sock.recvmsg_into([self._view], 64)
        # struct in_pktinfo: the interface, our address for an answer, the address in the header.
        info = ancillary[2]
        unicast = info[4:8] == info[8:12]
        # No interface: the way back need not be the way it came.
        self._asked = [(socket.IPPROTO_IP, _IP_PKTINFO, bytes(4) + info[4:8] + bytes(4))] if unicast else []
        return size, source

    def _receive_asked6(self) -> tuple[int, Source]:
        size, (ancillary,), _, source = self.sock.recvmsg_into([self._view], 64)
        # struct in6_pktinfo: the address, the interface, without which a link-local address means nothing.
        info = ancillary[2]
        if info[:2] != b"\xfe\x80":
            info = info[:16] + bytes(4)
        self._asked = [(socket.IPPROTO_IPV6, _IPV6_PKTINFO, info)] if info[0] != 0xFF else []
        return size, source

    def _answer_asked(self, datagram: memoryview, source: Source) -> int:
        if not self._asked:
            # Sent to many: were all of them to answer, the sender, or whoever it names, would drown.
            raise PermissionError(errno.EACCES, "asked by broadcast or multicast")

        return self.sock.sendmsg([datagram], self._asked, 0, source)


@lru_cache(maxsize=16384)
def network_of(host: str) -> str | bytes:
    """What may be one sender: an IPv4 address, an IPv6 /64, or one neighbour on a link."""
    if ":" not in host or host.startswith(("fe80:", "::")):
        return host

    return socket.inet_pton(socket.AF_INET6, host)[:8]
