"""The options of a socket, and its close after an error.

It must not wait for a socket or read from one.
"""

from __future__ import annotations

__all__ = ("Socket", "SocketOptions", "closed_on_error", "try_set")

import errno
import logging
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from anyecho.errors import UsageError
from anyecho.options import option, option_group
from anyecho.units import Seconds, Size, or_infinite
from anyecho.validation import check_types, require_min

logger = logging.getLogger("anyecho.net")

#: The type of a socket, for modules that use sockets only through those of `net`.
Socket: TypeAlias = socket.socket

_SIZES = ("tcp_notsent_lowat", "sndbuf", "rcvbuf")
#: macOS calls it TCP_KEEPALIVE.
_IDLE = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"
_KEEPALIVE = {_IDLE: 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
#: Errors of setsockopt(2) for an option or value that the protocol (MPTCP), the kernel (WSL1, gVisor) or a sandbox
#: does not allow. FreeBSD returns ENOBUFS for a buffer above kern.ipc.maxsockbuf.
_REFUSED = frozenset(
    {
        *(errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOBUFS, errno.ENOSYS),
        *(errno.EPERM, errno.EACCES),
    }
)


@option_group("Sockets")
@dataclass(frozen=True, kw_only=True)
class SocketOptions:
    """Options of a socket. Those of a listener are inherited by accepted sockets, except by Unix sockets.

    Options that the system lacks or refuses are left out. Times are seconds, sizes bytes. None is no limit, or for
    the buffers no fixed size (on the command line ``off``). Infinity is replaced by None, and 0 in sizes.

    Raises:
        UsageError: a value has the wrong type or is out of range.
    """

    tcp_nodelay: bool = option(True, "Send small messages at once (TCP_NODELAY).")
    # A peer that never reads holds 0.16 MiB of kernel memory; without this option, 4 MiB.
    tcp_notsent_lowat: Size | None = option(
        128 * 1024, "Maximum unsent bytes in the kernel per connection (TCP_NOTSENT_LOWAT)."
    )
    tcp_user_timeout: Seconds | None = option(
        60.0, "Close if the peer acknowledges nothing for this long (TCP_USER_TIMEOUT); 0: kernel default."
    )
    keepalive: bool = option(True, "Detect vanished peers: 6 probes, every 10 s, after 60 s idle (SO_KEEPALIVE).")
    sndbuf: Size | None = option(None, "Fixed send buffer (SO_SNDBUF); off: the kernel tunes it.")
    rcvbuf: Size | None = option(None, "Fixed receive buffer (SO_RCVBUF); off: the kernel tunes it.")

    def __post_init__(self) -> None:
        check_types(self, zero_is_none=_SIZES)
        for name in _SIZES:
            if not 0 <= (getattr(self, name) or 0) < 2**31:
                text = f"{name} must be 1 to {2**31 - 1} bytes, not {getattr(self, name)} (off, in Python None)"
                raise UsageError(text, options=(name,))
        require_min(0, self, ("tcp_user_timeout",))

    def apply(self, sock: socket.socket, *, quiet: bool = False) -> None:
        """Set the options that the type of `sock` has: on a datagram socket, only the buffer sizes.

        Options that the kernel refuses (on MPTCP, some of them) are logged in one line, unless `quiet`.
        """
        refused = [name for level, name, value in self._options_for(sock) if not try_set(sock, level, name, value)]
        if refused and not quiet:
            level = logging.INFO if self == SocketOptions() else logging.WARNING
            kind = f"{sock.family.name}, protocol {sock.proto}"
            logger.log(level, "left out socket options that the kernel refuses (%s): %s", kind, ", ".join(refused))

    def _options_for(self, sock: socket.socket) -> Iterator[tuple[int, str, int]]:
        """Yield the level, the name in the `socket` module, and the value of each option."""
        if self.sndbuf:
            yield socket.SOL_SOCKET, "SO_SNDBUF", self.sndbuf
        if self.rcvbuf:
            yield socket.SOL_SOCKET, "SO_RCVBUF", self.rcvbuf
        if sock.type != socket.SOCK_STREAM:
            return

        # Urgent data is echoed in its place (RFC 6093), not taken out of the stream. Unix sockets have it since
        # Linux 5.15.
        yield socket.SOL_SOCKET, "SO_OOBINLINE", 1
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return

        yield socket.SOL_SOCKET, "SO_KEEPALIVE", int(self.keepalive)
        yield socket.IPPROTO_TCP, "TCP_NODELAY", int(self.tcp_nodelay)
        if self.tcp_notsent_lowat:
            yield socket.IPPROTO_TCP, "TCP_NOTSENT_LOWAT", self.tcp_notsent_lowat
        # The maximum, an int of milliseconds, is 24 days; it stands for no limit (None) too. Zero is also set,
        # because a passed socket may have another value.
        timeout = math.ceil(min(or_infinite(self.tcp_user_timeout) * 1000, 2**31 - 1))
        yield socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", timeout
        if self.keepalive:
            for name, value in _KEEPALIVE.items():
                yield socket.IPPROTO_TCP, name, value


@contextmanager
def closed_on_error(sock: socket.socket) -> Iterator[socket.socket]:
    """Yield `sock`, and close it if an exception leaves the block."""
    try:
        yield sock
    except BaseException:
        sock.close()
        raise


def try_set(sock: socket.socket, level: int, name: str, value: int) -> bool:
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
