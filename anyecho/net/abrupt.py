"""End the connection of any anyio stream abruptly: with a reset, or with a FIN and nothing before it.

It must not know what is sent over the stream, or why it ends.
"""

from __future__ import annotations

__all__ = ("cut", "reset")

import os
import socket
import struct
from contextlib import suppress

from anyio import aclose_forcefully
from anyio.abc import ByteStream, SocketAttribute

try:
    import ctypes
except ImportError:  # a Python built without libffi
    _connect = None
else:
    _connect = getattr(ctypes.CDLL(None, use_errno=True), "connect", None)

#: struct sockaddr with the family AF_UNSPEC: connect(2) dissolves the association of a socket.
_NO_ADDRESS = struct.pack("H14x", socket.AF_UNSPEC)
_LINGER_0 = struct.pack("ii", 1, 0)


async def reset(stream: ByteStream) -> None:
    """Close `stream`, so that its peer gets a RST. Bytes in the send buffer are discarded.

    Without a TCP socket below, it is a close at once.
    """
    sock = stream.extra(SocketAttribute.raw_socket, None)
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
            # Linux resets now. Otherwise the stream may send more before close(2): a FIN, a close_notify.
            if _connect is not None:
                _connect(sock.fileno(), _NO_ADDRESS, len(_NO_ADDRESS))

    await aclose_forcefully(stream)


async def cut(stream: ByteStream) -> None:
    """Close `stream` with nothing but a FIN, or with a RST if there is unread input. Over TLS: no close_notify."""
    sock = stream.extra(SocketAttribute.raw_socket, None)
    if sock is not None and sock.fileno() >= 0:
        # On a copy of the descriptor, because the socket objects of some event loops have no shutdown().
        with suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as copy:
            copy.shutdown(socket.SHUT_RDWR)

    await aclose_forcefully(stream)
