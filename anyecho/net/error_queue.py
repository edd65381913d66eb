"""The error queue of a socket (MSG_ERRQUEUE of recvmsg(2)): ICMP errors and timestamps that an option asks for.

While something lies there, EPOLLERR is reported, level-triggered: a loop that does not read the queue spins.
"""

from __future__ import annotations

__all__ = ("drain_error_queue",)

import socket

_MSG_ERRQUEUE: int = getattr(socket, "MSG_ERRQUEUE", 0)
#: Entries discarded at a time: the next event reports the rest.
_DRAIN_MAX = 1024


def drain_error_queue(sock: socket.socket) -> None:
    """Discard what lies in the error queue of `sock`, which is non-blocking. Never raises."""
    # A Unix socket has no such queue and ignores the flag: the call would take the peer's data.
    if not _MSG_ERRQUEUE or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    try:
        for _ in range(_DRAIN_MAX):
            sock.recvmsg(1, 0, _MSG_ERRQUEUE)
    except OSError:  # it is empty, or the protocol has none
        return
