"""Sockets that somebody else has opened and bound: from the number of a descriptor to one that can be served.

It looks at what the descriptor is before anything is changed, and says in one line why it will not do. Who has
passed it, and under what name, `activation` knows.
"""

from __future__ import annotations

__all__ = ("inherit",)

import errno
import os
import socket
from contextlib import suppress

from anyecho.net.sockets import SocketOptions

_INTERNET = (socket.AF_INET, socket.AF_INET6)
#: A manager may have set them for us (Broadcast=, Timestamping= of systemd.socket(5)). With the first, a forged
#: source could be a broadcast address; with the second, the kernel tells more than the address that was asked.
#: SO_TIMESTAMP is not in Python's socket module; to unset it unsets its finer relatives too.
_UNWANTED = (socket.SO_BROADCAST, getattr(socket, "SO_TIMESTAMP", 29))


def inherit(fd: int, options: SocketOptions) -> socket.socket:
    """A duplicate of `fd`, non-blocking, with `options`: a listening TCP or Unix socket, or a bound UDP one.

    The descriptor stays open, and its giver's; but it is non-blocking too from now on, as is every other that is
    the same socket, in any process. Raises `OSError`.
    """
    sock = _duplicate(fd)
    try:
        if (reason := _judge(sock)) is not None:
            raise OSError(errno.EINVAL, f"descriptor {fd} {reason}")

        sock.setblocking(False)
        options.apply(sock)
        if sock.type == socket.SOCK_DGRAM:
            for unwanted in _UNWANTED:
                with suppress(OSError):  # this system does not know it
                    sock.setsockopt(socket.SOL_SOCKET, unwanted, 0)
    except BaseException:
        sock.close()
        raise

    return sock


def _duplicate(fd: int) -> socket.socket:
    try:
        duplicate = os.dup(fd)
    except OSError as exc:
        reason = f"descriptor {fd} is not open" if exc.errno == errno.EBADF else exc.strerror
        raise OSError(exc.errno, reason) from exc
    try:
        return socket.socket(fileno=duplicate)
    except BaseException as exc:
        os.close(duplicate)
        if isinstance(exc, OSError):
            raise OSError(exc.errno, f"descriptor {fd} is not a socket") from exc
        raise


def _judge(sock: socket.socket) -> str | None:
    """Why `sock` cannot be served, or None."""
    if sock.family in _INTERNET and sock.type == socket.SOCK_DGRAM and sock.proto in (0, socket.IPPROTO_UDP):
        if sock.getsockname()[1] == 0:
            return "is a UDP socket that is not bound"

        return "is a UDP socket that is connected, and hears one peer only" if _is_connected(sock) else None
    if sock.family not in (*_INTERNET, socket.AF_UNIX) or sock.type != socket.SOCK_STREAM:
        return "is not a TCP, UDP or Unix stream socket"
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return None
    if _is_connected(sock):
        return "is a connected socket, not a listening one (in a systemd socket unit, set Accept=no)"

    return "is a socket that does not listen"


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False

    return True
