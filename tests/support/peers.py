"""Plain socket clients, and polling for the reaction of a server."""

from __future__ import annotations

__all__ = ("SOON", "dial", "flood", "receive_all", "unread", "until")

import fcntl
import socket
import sys
import termios
from collections.abc import Callable

from anyio import fail_after, sleep

from anyecho.address import Address, TCPAddress, UnixAddress

#: Seconds that an immediate event may take on a busy machine.
SOON = 8.0


def dial(address: Address) -> socket.socket:
    """Return a connected blocking socket."""
    target: str | tuple[str, int]
    if isinstance(address, UnixAddress):
        sock, target = socket.socket(socket.AF_UNIX), address.path
    else:
        assert isinstance(address, TCPAddress)
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        sock, target = socket.socket(family), (address.host, address.port)

    sock.settimeout(10)
    try:
        sock.connect(target)
    except OSError:
        sock.close()
        raise

    return sock


def receive_all(sock: socket.socket) -> bytes:
    """Read until EOF."""
    return b"".join(iter(lambda: sock.recv(65536), b""))


def unread(sock: socket.socket) -> int:
    """Return the number of bytes in the receive buffer of the kernel."""
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)


async def flood(sock: socket.socket) -> None:
    """Send on a non-blocking socket until it is closed, and never read."""
    while True:
        try:
            sock.send(bytes(65536))
        except BlockingIOError:
            await sleep(0.001)
        except OSError:
            return


async def until(condition: Callable[[], bool], seconds: float = SOON) -> None:
    """Poll until `condition` holds; raises `TimeoutError` after `seconds`."""
    with fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await sleep(0.001)
