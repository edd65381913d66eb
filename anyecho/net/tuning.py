"""Optional socket options: a refused option is reported and is no error."""

from __future__ import annotations

__all__ = ("Option", "tune")

import errno
import socket
from typing import TypeAlias

#: Level, name in the `socket` module, value.
Option: TypeAlias = tuple[int, str, int]

#: Errors of setsockopt(2) for an option or value that the protocol (MPTCP), the kernel (WSL1, gVisor) or a sandbox
#: does not allow. FreeBSD returns ENOBUFS for a buffer above kern.ipc.maxsockbuf.
_REFUSED = frozenset(
    {
        *(errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOBUFS, errno.ENOSYS),
        *(errno.EPERM, errno.EACCES),
    }
)


def tune(sock: socket.socket, level: int, name: str, value: int) -> bool:
    """Set an option of `sock`; return false if it was refused. If `socket` has no constant `name`, do nothing.

    Raises `OSError` if the socket itself is at fault (EBADF).
    """
    option = getattr(socket, name, None)
    if option is None:
        return True
    try:
        sock.setsockopt(level, option, value)
    except OSError as exc:
        if exc.errno not in _REFUSED:
            raise
        return False

    return True
