"""Datagrams echoed one by one, with what every system's socket module has. `mmsg` does it in batches."""

from __future__ import annotations

__all__ = ("Singly",)

import errno
import os
import socket
from collections.abc import Callable
from functools import partial

from anyecho.net.datagram_counts import DatagramCounts, Guard, Source
from anyecho.net.error_queue import drain_error_queue
from anyecho.net.pktinfo import PKTINFO

#: As many as a batch has, before others have their turn: about 0.4 ms.
_AT_ONCE = 64
#: The largest datagram has 65535 bytes, its headers included; so none is ever cut.
_SIZE = 65536
#: Room for the control messages of a datagram: of a socket that was passed, there may be several.
_CONTROL_SIZE = 512


class Singly:
    """Echoes on `sock`; with `asked`, from the address that was asked, which IP_PKTINFO must tell."""

    def __init__(self, sock: socket.socket, *, asked: bool) -> None:
        self._sock = sock
        self._view = memoryview(bytearray(_SIZE))
        self._pktinfo = PKTINFO[sock.family]
        #: The control message of the last datagram, as the kernel wants it back; None if it came without.
        self._asked: list[tuple[int, int, bytes]] | None = None
        # recvmsg(2) costs a quarter more: only where it is needed.
        self._receive: Callable[[], tuple[int, Source]] = partial(sock.recvfrom_into, self._view)
        self._answer: Callable[[memoryview, Source], int] = sock.sendto
        if asked:
            self._receive = self._receive_asked
            self._answer = self._answer_asked

    def turn(self, guard: Guard, counts: DatagramCounts) -> bool:
        """Echo what has come, at most 64; return whether any of it was no error."""
        # Locals: this loop is what an echoed datagram costs, beside its two system calls.
        receive, admit, answer, view = self._receive, guard.admit, self._answer, self._view
        received = echoed = bytes_received = bytes_echoed = failed = 0
        try:
            for _ in range(_AT_ONCE):
                try:
                    size, source = receive()
                except BlockingIOError:
                    if not received:
                        drain_error_queue(self._sock)  # which may be what was reported
                    break
                except OSError as exc:
                    counts.count_error(exc)
                    failed += 1
                    continue

                received += 1
                bytes_received += size
                if admit(source):
                    try:
                        answer(view[:size], source)
                    except PermissionError as exc:
                        _refused(exc, source, guard, counts)
                    except OSError as exc:
                        counts.count_error(exc)
                    else:
                        echoed += 1
                        bytes_echoed += size
        finally:
            counts.received += received
            counts.echoed += echoed
            counts.bytes_received += bytes_received
            counts.bytes_echoed += bytes_echoed

        return failed < _AT_ONCE

    def _receive_asked(self) -> tuple[int, Source]:
        size, control, _, source = self._sock.recvmsg_into([self._view], _CONTROL_SIZE)
        self._asked = None
        for level, kind, info in control:
            if (level, kind) == self._pktinfo:
                self._asked = self._answer_from(info)
        return size, source

    def _answer_from(self, info: bytes) -> list[tuple[int, int, bytes]]:
        """Return the control message of the answer to a datagram with this pktinfo; none if it was sent to many."""
        level, kind = self._pktinfo
        if level == socket.IPPROTO_IP:
            # struct in_pktinfo: the interface, our address for an answer, the address in the header. The way back
            # need not be the way it came: no interface.
            unicast = info[4:8] == info[8:12]
            info = bytes(4) + info[4:]
        else:
            # struct in6_pktinfo: the address, the interface, without which a link-local address means nothing.
            unicast = info[0] != 0xFF
            if info[:2] != b"\xfe\x80":
                info = info[:16] + bytes(4)

        return [(level, kind, info)] if unicast else []

    def _answer_asked(self, datagram: memoryview, source: Source) -> int:
        if self._asked is None:
            # The giver of the socket has switched pktinfo off: an answer might be one to a broadcast.
            raise OSError(errno.ENOMSG, os.strerror(errno.ENOMSG))
        if not self._asked:
            # Sent to many: were all of them to answer, the sender, or whoever it names, would drown.
            raise PermissionError(errno.EACCES, "asked by broadcast or multicast")

        return self._sock.sendmsg([datagram], self._asked, 0, source)


def _refused(exc: OSError, source: Source, guard: Guard, counts: DatagramCounts) -> None:
    # SO_BROADCAST is never set, so the kernel refuses the broadcast addresses of every network it is on.
    if exc.errno == errno.EACCES:
        guard.refuse(source)
    else:
        counts.count_error(exc)
