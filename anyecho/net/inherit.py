"""Take over a socket that another program opened and bound, given by its descriptor number.

The descriptor is checked before anything is changed; `activation` finds its number by name. Socket options that
would change an echo are reset. Options that decide which peers reach the socket, or how packets are routed, marked
or queued, are kept (SO_BINDTODEVICE, SO_MARK, IP_TOS, SO_BUSY_POLL, TCP_DEFER_ACCEPT, TCP_FASTOPEN and more).
"""

from __future__ import annotations

__all__ = ("inherit", "reset_options")

import errno
import os
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from anyecho.net.error_queue import drain_error_queue
from anyecho.net.sockets import SocketOptions, closed_on_error

_INTERNET = (socket.AF_INET, socket.AF_INET6)

# Numbers, because Python's socket module lacks most names. Those of SOL_SOCKET depend on the architecture.
_IS_LINUX = sys.platform == "linux"
_HAS_NUMBERS = _IS_LINUX and not os.uname().machine.startswith(("alpha", "mips", "parisc", "sparc"))

#: SO_TIMESTAMP, SO_TIMESTAMPING (fills the error queue), SO_RXQ_OVFL, SO_RCVMARK, SO_RCVPRIORITY.
_REPORTS = {socket.SOL_SOCKET: (29, 37, 40, 75, 82)} if _HAS_NUMBERS else {}
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
#: TCP_CORK, IP_RECVERR, IPV6_RECVERR.
_STREAM = {socket.IPPROTO_TCP: (3,), socket.IPPROTO_IP: (11,), socket.IPPROTO_IPV6: (25,)} if _IS_LINUX else {}
#: By level, the options that are set to 0. A dual-stack IPv6 socket has the options of both families; an IPv4
#: socket refuses those of IPv6.
_OF_STREAMS = _REPORTS | _STREAM
_OF_DATAGRAMS = _REPORTS | {socket.IPPROTO_UDP: _UDP, socket.IPPROTO_IP: _IP, socket.IPPROTO_IPV6: _IPV6}
#: IP_MTU_DISCOVER, IPV6_MTU_DISCOVER: with DO or PROBE, replies are not fragmented; WANT is the default.
_MTU_DISCOVER = ((socket.IPPROTO_IP, 10), (socket.IPPROTO_IPV6, 23)) if _IS_LINUX else ()
_PMTUDISC_WANT, _PMTUDISC_DO, _PMTUDISC_PROBE = 1, 2, 3


def inherit(fd: int, options: SocketOptions) -> socket.socket:
    """Duplicate `fd`, a listening TCP or Unix socket or a bound UDP socket; make it non-blocking, set `options`.

    `fd` stays open and belongs to the caller. Non-blocking mode and socket options are shared with every descriptor
    of the same socket, in any process. Options that would change an echo are reset. Raises `OSError`, which names
    the descriptor and says why it cannot be served.
    """
    with closed_on_error(_duplicate(fd)) as sock:
        if (reason := _reject_reason(sock)) is not None:
            raise OSError(errno.EINVAL, f"descriptor {fd} {reason}")

        sock.setblocking(False)
        reset_options(sock)
        options.apply(sock)

    return sock


def reset_options(sock: socket.socket) -> None:
    """Reset the options that change an echo, and drain the error queue. Skip options that the kernel lacks.

    Raises `OSError` if SO_BROADCAST of a datagram socket cannot be cleared.
    """
    if sock.type == socket.SOCK_DGRAM:
        # The reply to a forged source must not be broadcast.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 0)
        _set_to_0(sock, _OF_DATAGRAMS)
        for level, option in _MTU_DISCOVER:
            with suppress(OSError):
                if sock.getsockopt(level, option) in (_PMTUDISC_DO, _PMTUDISC_PROBE):
                    sock.setsockopt(level, option, _PMTUDISC_WANT)
    elif sock.family != socket.AF_UNIX:
        # SO_LINGER of 0 s makes close(2) a reset, which discards echo; with more, close(2) blocks the event loop.
        _set(sock, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        _set(sock, socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        for option in _PEEK:
            _set(sock, socket.SOL_SOCKET, option, -1)
        _set_to_0(sock, _OF_STREAMS)
    drain_error_queue(sock)


def _set_to_0(sock: socket.socket, numbers: Mapping[int, Sequence[int]]) -> None:
    for level, options in numbers.items():
        for option in options:
            _set(sock, level, option, 0)


def _set(sock: socket.socket, level: int, option: int, value: int | bytes) -> None:
    with suppress(OSError):  # the kernel or the protocol lacks the option
        sock.setsockopt(level, option, value)


def _duplicate(fd: int) -> socket.socket:
    try:
        duplicate = os.dup(fd)
    except OSError as exc:
        reason = f"descriptor {fd} is not open" if exc.errno == errno.EBADF else exc.strerror
        raise OSError(exc.errno, reason) from exc
    try:
        return socket.socket(fileno=duplicate)
    except OSError as exc:
        os.close(duplicate)
        raise OSError(exc.errno, f"descriptor {fd} is not a socket") from exc


def _reject_reason(sock: socket.socket) -> str | None:
    """Return why `sock` cannot be served, or None."""
    if sock.family in _INTERNET and sock.type == socket.SOCK_DGRAM and sock.proto in (0, socket.IPPROTO_UDP):
        if sock.getsockname()[1] == 0:
            return "is a UDP socket that is not bound"

        return "is a connected UDP socket, which receives from one peer only" if _is_connected(sock) else None
    if sock.family not in (*_INTERNET, socket.AF_UNIX) or sock.type != socket.SOCK_STREAM:
        return "is not a TCP, UDP or Unix stream socket"
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return None
    if _is_connected(sock):
        return "is a connected socket, not a listening one (in a systemd socket unit, set Accept=no)"

    return "is a socket that does not listen"


def _is_connected(sock: socket.socket) -> bool:
    with suppress(OSError):
        sock.getpeername()
        return True

    return False
