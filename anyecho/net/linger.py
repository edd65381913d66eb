"""The lingering close of a stream, and checks for unread and unacknowledged data.

It does not decide when or why a connection ends, or how long a close may take.
"""

from __future__ import annotations

__all__ = ("is_acknowledged", "linger", "peek")

import fcntl
import math
import socket
import sys
import termios

from anyio import move_on_after
from anyio.lowlevel import checkpoint

from anyecho.net.stream import PolledStream
from anyecho.net.tls.records import Records

#: SIOCOUTQ (tcp(7), unix(7)) by its other name. On other systems it has no meaning for a socket.
_OUTPUT_QUEUE = termios.TIOCOUTQ if sys.platform == "linux" else None
#: Over TLS: bytes of one read, and maximum steps, because records without plaintext could follow for ever.
_CHUNK = 65536
_STEPS = 16
#: Seconds until the first check whether the peer has acknowledged all; each later wait is twice as long. The
#: kernel reports no event for it, and a peer may delay an acknowledgement by 40 ms.
_FIRST_CHECK = 0.001


async def linger(stream: PolledStream, sock: socket.socket, records: Records | None, *, quiet: bool) -> None:
    """Half-close `stream`, over `sock`, and read until EOF, without a time limit.

    If a socket closes while the peer still sends, the kernel sends a reset, and the peer loses echo that it has not
    read. A `quiet` peer has sent nothing that is unread: for it, this returns once it has acknowledged all.
    """
    if quiet and records is None and is_acknowledged(sock):
        return

    await stream.send_eof()
    pause = _FIRST_CHECK if quiet else math.inf
    while True:
        with move_on_after(pause) as scope:
            await stream.receive()
            pause = math.inf
            # asyncio does not cancel a task that has just been woken, and a flooding peer wakes this task in every
            # pass of the loop. Only a checkpoint, which waits for no event, can then be cancelled.
            await checkpoint()
        if scope.cancelled_caught:
            # Infinite: the end of the pause was noticed at the checkpoint, after data.
            if math.isinf(pause) or peek(sock, records) is not None:
                pause = math.inf
            elif is_acknowledged(sock):
                return
            else:
                pause *= 2


def is_acknowledged(sock: socket.socket) -> bool:
    """Whether the peer has acknowledged all bytes sent; on a Unix socket, whether it has read them.

    False if the kernel cannot tell.
    """
    try:
        return _OUTPUT_QUEUE is not None and not any(fcntl.ioctl(sock, _OUTPUT_QUEUE, bytes(4)))
    except OSError:
        return False


def peek(sock: socket.socket, records: Records | None = None) -> bytes | None:
    """Return the next byte from the peer, ``b""`` at EOF (FIN, close_notify), None if nothing has arrived.

    A failed connection counts as a byte, because it is neither EOF nor silence. Over TLS the byte is consumed, so
    the caller must discard all later input.
    """
    try:
        if records is None:
            return sock.recv(1, socket.MSG_PEEK)

        for _ in range(_STEPS):
            if (data := records.receive(1)) is not None:
                return data
            if not records.process_more():
                chunk = sock.recv(_CHUNK)
                if not chunk:  # a FIN without close_notify
                    break
                records.feed(chunk)
    except BlockingIOError:
        return None
    except OSError:
        pass

    return b"?"
