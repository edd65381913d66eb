"""Accepted sockets: the options that they do not inherit from their listener."""

from __future__ import annotations

__all__ = ("Preparation", "preparation_for")

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from anyecho.net.sockets import SocketOptions

#: Sets options of an accepted socket. Never raises: a socket that is at fault says so when it is read.
Preparation: TypeAlias = Callable[[socket.socket], None]

#: Not in Python's socket module on every system, or before 3.10.
_SO_PROTOCOL: int = getattr(socket, "SO_PROTOCOL", 38)
_IPPROTO_MPTCP: int = getattr(socket, "IPPROTO_MPTCP", 262)


def preparation_for(listener: socket.socket, options: SocketOptions) -> Preparation | None:
    """What has to be done to each socket that `listener` accepts; None where it inherits all `options`."""
    # A Unix socket inherits nothing, nor does the socket of a plain TCP peer of an MPTCP listener.
    if listener.family == socket.AF_UNIX or _is_mptcp(listener):
        return _apply(options)

    return None


def _apply(options: SocketOptions) -> Preparation:
    def prepare(sock: socket.socket) -> None:
        with suppress(OSError):
            options.apply(sock, quiet=True)

    return prepare


def _is_mptcp(sock: socket.socket) -> bool:
    # The kernel is asked, because mptcpize(8) changes the protocol behind Python's back.
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL) == _IPPROTO_MPTCP
    except OSError:
        return False
