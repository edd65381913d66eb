"""The lingering close of a stream, and what the kernel and OpenSSL still hold when a connection is ended.

It does not decide when a connection ends, for what reason, or how long a close may take.
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
from anyecho.net.tls_records import Records

#: SIOCOUTQ (tcp(7), unix(7)) under its other name. On other systems the number has no meaning for a socket.
_OUTPUT_QUEUE = termios.TIOCOUTQ if sys.platform == "linux" else None
#: Over TLS: bytes read from the socket at a time, and steps. Records without plaintext could follow for ever.
_CHUNK = 65536
_STEPS = 16
#: Seconds until the first look whether the peer has acknowledged all; each later look waits twice as long. The
#: kernel reports no event for it, and a peer may delay an acknowledgement by 40 ms.
_FIRST_CHECK = 0.001


async def linger(stream: PolledStream, sock: socket.socket, records: Records | None, *, quiet: bool) -> None:
    """Half-close `stream`, over `sock`, and read until the peer's end, without a limit of time.

    Closing on a peer that still sends is answered with a reset, which destroys echo that the peer has not read yet.
    A `quiet` peer had sent nothing that is unread: it is not waited for once it has acknowledged all.
    """
    if quiet and records is None and is_acknowledged(sock):
        return

    await stream.send_eof()
    pause = _FIRST_CHECK if quiet else math.inf
    while True:
        with move_on_after(pause) as looking:
            await stream.receive()
            pause = math.inf
            # asyncio does not cancel a task that has just been woken. A flooding peer wakes this task in every
            # round of the loop, so that only a wait for nothing lets a cancellation through.
            await checkpoint()
        if looking.cancelled_caught:
            if peek(sock, records) is not None:
                pause = math.inf
            elif is_acknowledged(sock):
                return
            else:
                pause *= 2


def is_acknowledged(sock: socket.socket) -> bool:
    """Whether the peer has acknowledged all that was sent; on a Unix socket, whether the peer has read it.

    False where the kernel cannot tell.
    """
    if _OUTPUT_QUEUE is None:
        return False

    try:
        return not any(fcntl.ioctl(sock, _OUTPUT_QUEUE, bytes(4)))
    except OSError:
        return False


def peek(sock: socket.socket, records: Records | None = None) -> bytes | None:
    """The next byte from the peer, empty at the peer's end (FIN, close_notify), None if nothing has come.

    A failed connection counts as a byte: something other than silence or an end is there. Over TLS the byte is
    taken, so this is for a connection whose input is discarded from now on.
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
