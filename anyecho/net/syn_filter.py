"""Let the kernel complete no more connections on a listening TCP socket, while its backlog is accepted."""

from __future__ import annotations

__all__ = ("drop_syns",)

import socket
import struct
import sys
from array import array

#: From asm-generic/socket.h.
_SO_ATTACH_FILTER = 26
#: Classic BPF (socket-filter in the kernel's documentation) over the TCP header: code, jump if true, jump if false,
#: operand. Byte 13 of the header has the flags.
_DROP_SYNS = (
    (0x30, 0, 0, 13),  # load the flags
    (0x45, 0, 1, 0x02),  # skip the next instruction unless SYN is set
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
)


def drop_syns(sock: socket.socket) -> bool:
    """Drop each SYN for the listening `sock`, and return whether the kernel does that.

    Handshakes that have begun are completed.
    A peer repeats its SYN after a second, when another listener may have the port; if none has, it is refused.
    Some kernels have no such filter, or refuse it to a user without privileges. Every process that shares `sock` is
    affected.
    """
    if sys.platform != "linux":
        return False

    code = array("B", b"".join(struct.pack("=HBBI", *instruction) for instruction in _DROP_SYNS))
    address, _ = code.buffer_info()
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(_DROP_SYNS), address))
    except OSError:
        return False

    return True
