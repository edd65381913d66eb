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

from anyecho.net.foreign_options import reset_options
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
    # Unix sockets inherit nothing, and neither do plain TCP connections of an MPTCP listener.
    if listener.family == socket.AF_UNIX or _is_mptcp(listener):
        return _prepare(options, passed=passed)
    if passed and (queued := _backlog_length(listener)):
        return _prepare_first(queued, _prepare(options, passed=True))

    return None


def _prepare(options: SocketOptions, *, passed: bool) -> Preparation:
    def prepare(sock: socket.socket) -> None:
        with suppress(OSError):
            if passed:
                reset_options(sock)
            options.apply(sock, quiet=True)

    return prepare


def _prepare_first(count: float, prepare: Preparation) -> Preparation:
    """Prepare only the first `count` sockets: it takes 25 us, as long as accept(2) and all that follows it."""

    def prepare_queued(sock: socket.socket) -> None:
        nonlocal count
        if count > 0:
            count -= 1
            prepare(sock)

    return prepare_queued


def _backlog_length(listener: socket.socket) -> float:
    """Return the length of the accept queue (first in, first out); infinity if the kernel does not tell."""
    try:
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
