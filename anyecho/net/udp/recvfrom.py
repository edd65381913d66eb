"""Echo datagrams with one recvfrom(2) and one sendto(2) each. Portable; `mmsg` is the faster way on Linux.

A reply can leave from the destination address of its datagram, if the kernel reports that address (IP_PKTINFO of
ip(7), IPV6_RECVPKTINFO of ipv6(7)).
"""

from __future__ import annotations

__all__ = ("BATCH", "CONTROL_SIZE", "MAX_SIZE", "PKTINFO", "SingleEcho", "enable_pktinfo")

import errno
import logging
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from anyecho.net.error_queue import drain_error_queue
from anyecho.net.udp.counts import DatagramCounts, Guard, Source

logger = logging.getLogger("anyecho.server")

#: Datagrams echoed before other tasks run: about 0.4 ms, with `mmsg` 0.3 ms.
BATCH = 64
#: The largest datagram has 65535 bytes, headers included, so none is truncated.
MAX_SIZE = 65536
#: Bytes for the control messages of a datagram: pktinfo, and those that were enabled on an inherited socket.
CONTROL_SIZE = 512

#: Python's socket module has it since 3.14.
_IP_PKTINFO: int = getattr(socket, "IP_PKTINFO", 8 if sys.platform == "linux" else -1)
_IPV6_PKTINFO: int = getattr(socket, "IPV6_PKTINFO", -1)
_IPV6_RECVPKTINFO: int = getattr(socket, "IPV6_RECVPKTINFO", -1)
#: Address family -> level and type of the control message.
PKTINFO = {
    socket.AF_INET: (socket.IPPROTO_IP, _IP_PKTINFO),
    socket.AF_INET6: (socket.IPPROTO_IPV6, _IPV6_PKTINFO),
}


class SingleEcho:
    """Echoes the datagrams that arrive on `sock`.

    With `reply_from_dst`, a reply leaves from the destination address of its datagram. IP_PKTINFO must be enabled.
    """

    def __init__(self, sock: socket.socket, *, reply_from_dst: bool) -> None:
        self._sock = sock
        self._view = memoryview(bytearray(MAX_SIZE))
        self._pktinfo = PKTINFO[sock.family]
        #: Pktinfo for the reply to the last datagram; empty if that was not unicast, None if it came without.
        self._reply_control: list[tuple[int, int, bytes]] | None = None
        # recvmsg(2) costs a quarter more, so it is used only where it is needed.
        self._receive: Callable[[], tuple[int, Source]] = partial(sock.recvfrom_into, self._view)
        self._reply: Callable[[memoryview, Source], int] = sock.sendto
        if reply_from_dst:
            self._receive = self._receive_with_pktinfo
            self._reply = self._reply_with_pktinfo

    def echo_batch(self, guard: Guard, counts: DatagramCounts) -> bool:
        """Echo queued datagrams, at most 64. Return false if each receive was an error."""
        # Locals: this loop is the cost of an echoed datagram, beside its two system calls.
        receive, admit, reply, view = self._receive, guard.admit, self._reply, self._view
        received = echoed = bytes_received = bytes_echoed = failed = 0
        try:
            for _ in range(BATCH):
                try:
                    size, source = receive()
                except BlockingIOError:
                    if not received:
                        drain_error_queue(self._sock)  # the socket may be readable for its error queue only
                    break
                except OSError as exc:
                    counts.count_error(exc)
                    failed += 1
                    continue

                received += 1
                bytes_received += size
                if admit(source):
                    try:
                        reply(view[:size], source)
                    except OSError as exc:
                        counts.count_send_error(exc, source, guard)
                    else:
                        echoed += 1
                        bytes_echoed += size
        finally:
            counts.received += received
            counts.echoed += echoed
            counts.bytes_received += bytes_received
            counts.bytes_echoed += bytes_echoed

        return failed < BATCH

    def _receive_with_pktinfo(self) -> tuple[int, Source]:
        size, control, _, source = self._sock.recvmsg_into([self._view], CONTROL_SIZE)
        self._reply_control = None
        for level, kind, info in control:
            if (level, kind) == self._pktinfo:
                self._reply_control = self._reply_control_for(info)
        return size, source

    def _reply_control_for(self, info: bytes) -> list[tuple[int, int, bytes]]:
        """Return the control messages that send a reply from the address to which the datagram was sent.

        `info` is the pktinfo of the datagram. The list is empty if its destination was broadcast or multicast.
        """
        level, kind = self._pktinfo
        if level == socket.IPPROTO_IP:
            # struct in_pktinfo: ipi_ifindex, ipi_spec_dst, ipi_addr. The route of the reply may be through another
            # interface, so ipi_ifindex is cleared.
            unicast = info[4:8] == info[8:12]
            info = bytes(4) + info[4:]
        else:
            # struct in6_pktinfo: ipi6_addr, ipi6_ifindex. Only a link-local address needs the interface.
            unicast = info[0] != 0xFF
            if info[:2] != b"\xfe\x80":
                info = info[:16] + bytes(4)

        return [(level, kind, info)] if unicast else []

    def _reply_with_pktinfo(self, datagram: memoryview, source: Source) -> int:
        if self._reply_control is None:
            # Another process has disabled pktinfo on the shared socket: the datagram may be a broadcast.
            raise OSError(errno.ENOMSG, os.strerror(errno.ENOMSG))
        if not self._reply_control:
            # Never reply to broadcast or multicast: amplification.
            raise PermissionError(errno.EACCES, "sent to a broadcast or multicast address")

        return self._sock.sendmsg([datagram], self._reply_control, 0, source)


def enable_pktinfo(sock: socket.socket) -> bool:
    """Make the kernel report the destination of each datagram. If it cannot, log a warning and return False."""
    level = PKTINFO[sock.family][0]
    option = _IP_PKTINFO if sock.family == socket.AF_INET else _IPV6_RECVPKTINFO
    if option >= 0:
        with suppress(OSError):
            sock.setsockopt(level, option, 1)
            return True

    logger.warning("cannot enable IP_PKTINFO: replies may leave from another address than the client sent to")
    return False
