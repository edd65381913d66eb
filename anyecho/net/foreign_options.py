"""Reset the options of an inherited socket that would change an echo.

Options that decide which peers reach the socket, or how packets are routed, marked or queued, are kept
(SO_BINDTODEVICE, SO_MARK, IP_TOS, SO_BUSY_POLL, TCP_DEFER_ACCEPT, TCP_FASTOPEN and more).
"""

from __future__ import annotations

__all__ = ("reset_options",)

import os
import socket
import struct
import sys
from contextlib import suppress

from anyecho.net.error_queue import drain_error_queue

# Numbers, because Python's socket module lacks most names. Those of SOL_SOCKET depend on the architecture.
_IS_LINUX = sys.platform == "linux"
_HAS_NUMBERS = _IS_LINUX and not os.uname().machine.startswith(("alpha", "mips", "parisc", "sparc"))

#: SO_TIMESTAMP, SO_TIMESTAMPING (fills the error queue), SO_RXQ_OVFL, SO_RCVMARK, SO_RCVPRIORITY.
_REPORTS = (29, 37, 40, 75, 82) if _HAS_NUMBERS else ()
#: Level and number, for streams: TCP_CORK, IP_RECVERR, IPV6_RECVERR.
_STREAM = ((socket.IPPROTO_TCP, 3), (socket.IPPROTO_IP, 11), (socket.IPPROTO_IPV6, 25)) if _IS_LINUX else ()
#: SO_PEEK_OFF: with an offset, MSG_PEEK does not begin at the next byte, where the PROXY header is. -1 means none.
_PEEK = (42,) if _HAS_NUMBERS else ()
#: UDP_CORK delays replies, UDP_SEGMENT splits them, UDP_GRO merges datagrams.
_UDP = (1, 103, 104) if _IS_LINUX else ()
#: IP_RECVERR; then control messages with each datagram: IP_RECVOPTS, IP_RETOPTS, IP_RECVTTL, IP_RECVTOS,
#: IP_PASSSEC, IP_RECVORIGDSTADDR, IP_CHECKSUM, IP_RECVFRAGSIZE.
_IP = (11, 6, 7, 12, 13, 18, 20, 23, 25) if _IS_LINUX else ()
#: The same for IPv6. RFC 2292: pktinfo, hop options, destination options, routing header, hop limit; flow label.
#: RFC 3542: hop limit, hop options, routing header, destination options, path MTU (a separate empty datagram),
#: traffic class; original destination, fragment size. Last, IPV6_DONTFRAG.
_IPV6 = (25, 2, 3, 4, 5, 8, 11, 51, 53, 56, 58, 60, 66, 74, 77, 62) if _IS_LINUX else ()
#: IP_MTU_DISCOVER, IPV6_MTU_DISCOVER: with DO or PROBE, replies are not fragmented; WANT is the default.
_MTU_DISCOVER = ((socket.IPPROTO_IP, 10), (socket.IPPROTO_IPV6, 23)) if _IS_LINUX else ()
_PMTUDISC_WANT, _PMTUDISC_DO, _PMTUDISC_PROBE = 1, 2, 3


def reset_options(sock: socket.socket) -> None:
    """Reset the options that change an echo, and drain the error queue. Skip options that the kernel lacks.

    Raises `OSError` if SO_BROADCAST of a datagram socket cannot be cleared.
    """
    if sock.type == socket.SOCK_DGRAM:
        # The reply to a forged source must not be broadcast.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 0)
        _reset_datagrams(sock)
    elif sock.family != socket.AF_UNIX:
        _reset_stream(sock)
    drain_error_queue(sock)


def _reset_stream(sock: socket.socket) -> None:
    # SO_LINGER of 0 s makes close(2) a reset, which discards echo; with more, close(2) blocks the event loop.
    _set(sock, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    _set(sock, socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    for option in _REPORTS:
        _set(sock, socket.SOL_SOCKET, option, 0)
    for option in _PEEK:
        _set(sock, socket.SOL_SOCKET, option, -1)
    for level, option in _STREAM:
        _set(sock, level, option, 0)


def _reset_datagrams(sock: socket.socket) -> None:
    for option in _REPORTS:
        _set(sock, socket.SOL_SOCKET, option, 0)
    for option in _UDP:
        _set(sock, socket.IPPROTO_UDP, option, 0)
    # A dual-stack IPv6 socket has the options of both families.
    for option in _IP:
        _set(sock, socket.IPPROTO_IP, option, 0)
    for option in _IPV6 if sock.family == socket.AF_INET6 else ():
        _set(sock, socket.IPPROTO_IPV6, option, 0)
    for level, option in _MTU_DISCOVER:
        with suppress(OSError):
            if sock.getsockopt(level, option) in (_PMTUDISC_DO, _PMTUDISC_PROBE):
                sock.setsockopt(level, option, _PMTUDISC_WANT)


def _set(sock: socket.socket, level: int, option: int, value: int | bytes) -> None:
    with suppress(OSError):  # the kernel or the protocol lacks the option
        sock.setsockopt(level, option, value)
