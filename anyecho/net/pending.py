"""Whether the kernel has something for a socket that its owner has not read yet, or room for what it would send."""

from __future__ import annotations

__all__ = ("is_ready",)

import select
import socket


def is_ready(sock: socket.socket, *, to_write: bool = False) -> bool:
    """Whether a read would not block: data, an end or an error is there; with `to_write`, or a write would not."""
    if sock.fileno() < 0:
        return False

    # Not MSG_PEEK: that would take a pending error off the socket. Not select(2): no descriptor above 1023.
    poll = select.poll()
    poll.register(sock, select.POLLIN | (select.POLLOUT if to_write else 0))
    return bool(poll.poll(0))
