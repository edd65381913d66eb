"""Take over a socket that another program opened and bound, given by its descriptor number.

The descriptor is checked before anything is changed. `activation` finds its number by name.
"""

from __future__ import annotations

__all__ = ("inherit",)

import errno
import os
import socket

from anyecho.net.foreign_options import reset_options
from anyecho.net.sockets import SocketOptions, closed_on_error

_INTERNET = (socket.AF_INET, socket.AF_INET6)


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
    try:
        sock.getpeername()
    except OSError:
        return False

    return True
