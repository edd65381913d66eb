"""Peers that know nothing of anyecho, and how to wait for what a server does about them."""

from __future__ import annotations

__all__ = ("SOON", "dial", "flood", "receive_all", "unread", "until")

import fcntl
import socket
import sys
import termios
from collections.abc import Callable

from anyio import fail_after, sleep

from anyecho.address import Address, TCPAddress, UnixAddress

#: How long anything may take that should happen at once, on a busy machine.
SOON = 8.0


def dial(address: Address) -> socket.socket:
    """A blocking client socket, as any program would make it."""
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
    """All that comes until the end."""
    return b"".join(iter(lambda: sock.recv(65536), b""))


def unread(sock: socket.socket) -> int:
    """How many bytes the kernel has for it."""
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
    """Poll for what a server counts but announces to nobody."""
    with fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event for it, by design
            await sleep(0.001)
