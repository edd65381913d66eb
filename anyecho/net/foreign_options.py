"""Options of a passed socket that change an echo, and that its giver may have set for a purpose of its own.

What decides which peers reach the socket, and how packets are routed, marked or queued, stays as the giver has
set it (SO_BINDTODEVICE, SO_MARK, IP_TOS, SO_BUSY_POLL, TCP_DEFER_ACCEPT, TCP_FASTOPEN and others).
"""

from __future__ import annotations

__all__ = ("reset_options",)

import os
import socket
import struct
import sys
from contextlib import suppress

from anyecho.net.error_queue import drain_error_queue

# Numbers, because Python's socket module has no names for most of them. On Linux those of SOL_SOCKET differ between
# machines.
_IS_LINUX = sys.platform == "linux"
_HAS_NUMBERS = _IS_LINUX and not os.uname().machine.startswith(("alpha", "mips", "parisc", "sparc"))

#: SO_TIMESTAMP, SO_TIMESTAMPING (of what is sent, the time goes to the error queue), SO_RXQ_OVFL, SO_RCVMARK,
#: SO_RCVPRIORITY.
_REPORTS = (29, 37, 40, 75, 82) if _HAS_NUMBERS else ()
#: With an offset, a peek does not begin at the next byte, where a PROXY header does. -1 is none.
_SO_PEEK_OFF = 42
_TCP_CORK = 3
#: UDP_CORK holds answers back, UDP_SEGMENT splits them, UDP_GRO merges datagrams.
_UDP = (1, 103, 104) if _IS_LINUX else ()
#: IP_RECVERR; then control messages with each datagram: IP_RECVOPTS, IP_RETOPTS, IP_RECVTTL, IP_RECVTOS,
#: IP_PASSSEC, IP_RECVORIGDSTADDR, IP_CHECKSUM, IP_RECVFRAGSIZE.
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_IP = (_IP_RECVERR, 6, 7, 12, 13, 18, 20, 23, 25) if _IS_LINUX else ()
#: The same of IPv6, RFC 2292's first: pktinfo, hop options, destination options, routing header, hop limit; flow
#: label; then hop limit, hop options, routing header, destination options, path MTU (an empty datagram of its own),
#: traffic class, original destination, fragment size. Last, IPV6_DONTFRAG.
_IPV6 = (_IPV6_RECVERR, 2, 3, 4, 5, 8, 11, 51, 53, 56, 58, 60, 66, 74, 77, 62) if _IS_LINUX else ()
#: IP_MTU_DISCOVER, IPV6_MTU_DISCOVER: with DO or PROBE, no answer may be fragmented; WANT is the default.
_MTU_DISCOVER = ((socket.IPPROTO_IP, 10), (socket.IPPROTO_IPV6, 23)) if _IS_LINUX else ()
_PMTUDISC_WANT, _PMTUDISC_DO, _PMTUDISC_PROBE = 1, 2, 3


def reset_options(sock: socket.socket) -> None:
    """Reset what changes an echo, and discard what is in the error queue. Options that are unknown are passed over.

    Raises the `OSError` of a datagram socket that goes on sending to broadcast addresses.
    """
    if sock.type == socket.SOCK_DGRAM:
        # A forged source could be a broadcast address.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 0)
        _reset_datagrams(sock)
    elif sock.family != socket.AF_UNIX:
        _reset_stream(sock)
    drain_error_queue(sock)


def _reset_stream(sock: socket.socket) -> None:
    # A close with a time of zero is a reset, which destroys echo; with another it blocks the event loop.
    _set(sock, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    _set(sock, socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    for option in _REPORTS:
        _set(sock, socket.SOL_SOCKET, option, 0)
    if _IS_LINUX:
        _set(sock, socket.IPPROTO_TCP, _TCP_CORK, 0)
        _set(sock, socket.IPPROTO_IP, _IP_RECVERR, 0)
        if sock.family == socket.AF_INET6:
            _set(sock, socket.IPPROTO_IPV6, _IPV6_RECVERR, 0)
    if _HAS_NUMBERS:
        _set(sock, socket.SOL_SOCKET, _SO_PEEK_OFF, -1)


def _reset_datagrams(sock: socket.socket) -> None:
    for option in _REPORTS:
        _set(sock, socket.SOL_SOCKET, option, 0)
    for option in _UDP:
        _set(sock, socket.IPPROTO_UDP, option, 0)
    # An IPv6 socket that takes IPv4 too has the options of both.
    for option in _IP:
        _set(sock, socket.IPPROTO_IP, option, 0)
    for option in _IPV6 if sock.family == socket.AF_INET6 else ():
        _set(sock, socket.IPPROTO_IPV6, option, 0)
    for level, option in _MTU_DISCOVER:
        with suppress(OSError):
            if sock.getsockopt(level, option) in (_PMTUDISC_DO, _PMTUDISC_PROBE):
                sock.setsockopt(level, option, _PMTUDISC_WANT)


def _set(sock: socket.socket, level: int, option: int, value: int | bytes) -> None:
    with suppress(OSError):  # this kernel, or protocol, does not have it
        sock.setsockopt(level, option, value)
