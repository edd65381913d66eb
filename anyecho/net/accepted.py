"""Set the options that accepted sockets do not inherit from their listener."""

from __future__ import annotations

__all__ = ("Preparation", "preparation_for")

import math
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from anyecho.net.inherit import reset_options
from anyecho.net.sockets import SocketOptions

#: Sets options of an accepted socket. Never raises: a socket at fault fails when it is read.
Preparation: TypeAlias = Callable[[socket.socket], None]

#: Not in Python's socket module on every system, or before 3.10.
_SO_PROTOCOL: int = getattr(socket, "SO_PROTOCOL", 38)
_IPPROTO_MPTCP: int = getattr(socket, "IPPROTO_MPTCP", 262)
#: struct tcp_info up to tcpi_unacked: for a listener, the length of its accept queue.
_BACKLOG = struct.Struct("=24xI")


def preparation_for(listener: socket.socket, options: SocketOptions, *, passed: bool) -> Preparation | None:
    """Return the preparation of each socket that `listener` accepts; None if it inherits all `options`.

    A `passed` listener may hold connections that inherited options before these were reset on the listener.
    """
    remaining = _count_unprepared(listener, passed=passed)

    def prepare(sock: socket.socket) -> None:
        # Only as long as it is needed: it takes 25 us, as long as accept(2) and all that follows it.
        nonlocal remaining
        if remaining > 0:
            remaining -= 1
            with suppress(OSError):
                if passed:
                    reset_options(sock)
                options.apply(sock, quiet=True)

    return prepare if remaining else None


def _count_unprepared(listener: socket.socket, *, passed: bool) -> float:
    """Return how many of the next accepted sockets lack options: the first of them, or all (infinity).

    Infinity too if the kernel does not tell how many are in the backlog.
    """
    # Unix sockets inherit nothing, and neither do plain TCP connections of an MPTCP listener.
    if listener.family == socket.AF_UNIX or _is_mptcp(listener):
        return math.inf
    if not passed:
        return 0
    try:
        # The length of the accept queue, which is first in, first out.
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BACKLOG.size)
        return float(_BACKLOG.unpack(info)[0]) if sys.platform == "linux" else math.inf
    except (AttributeError, OSError, struct.error):
        return math.inf


def _is_mptcp(sock: socket.socket) -> bool:
    # Ask the kernel, because mptcpize(8) changes the protocol and `sock.proto` does not show it.
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL) == _IPPROTO_MPTCP
    except OSError:
        return False
