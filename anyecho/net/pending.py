"""Whether a socket is readable or writable at this moment, without an event loop."""

from __future__ import annotations

__all__ = ("is_ready",)

import select
import socket


def is_ready(sock: socket.socket, *, to_write: bool = False) -> bool:
    """Whether a read would not block (data, EOF or an error is pending); with `to_write`, or a write would not."""
    if sock.fileno() < 0:
        return False

    # Not MSG_PEEK, which clears a pending error. Not select(2), which takes no descriptor above 1023.
    poll = select.poll()
    poll.register(sock, select.POLLIN | (select.POLLOUT if to_write else 0))
    return bool(poll.poll(0))
