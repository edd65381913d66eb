"""Accepted sockets: the options that they do not inherit from their listener."""

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

#: Sets options of an accepted socket. Never raises: a socket that is at fault says so when it is read.
Preparation: TypeAlias = Callable[[socket.socket], None]

#: Not in Python's socket module on every system, or before 3.10.
_SO_PROTOCOL: int = getattr(socket, "SO_PROTOCOL", 38)
_IPPROTO_MPTCP: int = getattr(socket, "IPPROTO_MPTCP", 262)
#: Of struct tcp_info, up to tcpi_unacked: of a listener, how many connections it has not accepted yet.
_BACKLOG = struct.Struct("=24xI")


def preparation_for(listener: socket.socket, options: SocketOptions, *, passed: bool) -> Preparation | None:
    """What has to be done to each socket that `listener` accepts; None where it inherits all `options`.

    A `passed` one may hold connections that were made before its giver's options were reset, and inherited them.
    """
    # A Unix socket inherits nothing, nor does the socket of a plain TCP peer of an MPTCP listener.
    if listener.family == socket.AF_UNIX or _is_mptcp(listener):
        return _prepare(options, passed=passed)
    if passed and (waiting := _backlog_length(listener)):
        return _prepare_first(waiting, _prepare(options, passed=True))

    return None


def _prepare(options: SocketOptions, *, passed: bool) -> Preparation:
    def prepare(sock: socket.socket) -> None:
        with suppress(OSError):
            if passed:
                reset_options(sock)
            options.apply(sock, quiet=True)

    return prepare


def _prepare_first(count: float, prepare: Preparation) -> Preparation:
    """Only the first `count` sockets: it takes 25 us, as long as accept(2) and all that follows it."""

    def prepare_while_old(sock: socket.socket) -> None:
        nonlocal count
        if count > 0:
            count -= 1
            prepare(sock)

    return prepare_while_old


def _backlog_length(listener: socket.socket) -> float:
    """Connections in the accept queue, which is first in, first out; infinity where the kernel does not tell."""
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BACKLOG.size)
        return float(_BACKLOG.unpack(info)[0]) if sys.platform == "linux" else math.inf
    except (AttributeError, OSError, struct.error):
        return math.inf


def _is_mptcp(sock: socket.socket) -> bool:
    # The kernel is asked, because mptcpize(8) changes the protocol behind Python's back.
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL) == _IPPROTO_MPTCP
    except OSError:
        return False
