"""Drain the error queue of a socket (MSG_ERRQUEUE of recvmsg(2)): ICMP errors and transmit timestamps.

While the queue is not empty, EPOLLERR is reported, level-triggered: an event loop that does not read it spins.
"""

from __future__ import annotations

__all__ = ("drain_error_queue",)

import socket

_MSG_ERRQUEUE: int = getattr(socket, "MSG_ERRQUEUE", 0)
#: Maximum entries discarded per call; the next event reports the rest.
_DRAIN_MAX = 1024


def drain_error_queue(sock: socket.socket) -> None:
    """Discard the error queue of the non-blocking `sock`. Never raises."""
    # A Unix socket has no error queue and ignores the flag: the call would consume the peer's data.
    if not _MSG_ERRQUEUE or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    try:
        for _ in range(_DRAIN_MAX):
            sock.recvmsg(1, 0, _MSG_ERRQUEUE)
    except OSError:  # the queue is empty, or the protocol has none
        return
