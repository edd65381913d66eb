"""Plain socket clients, and polling for the reaction of a server."""

from __future__ import annotations

__all__ = (
    "SOON",
    "TIMEOUT",
    "converse",
    "dial",
    "exchange",
    "fill_backlog",
    "flood",
    "receive",
    "receive_all",
    "unread",
    "until",
    "until_closed",
)

import fcntl
import os
import socket
import sys
import termios
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from anyio import fail_after, sleep

from anyecho.address import Address, TCPAddress, UnixAddress, parse_address
from anyecho.server.server import Server

#: Seconds that an immediate event may take on a busy machine.
SOON = 8.0
#: The same for real processes, which start first.
TIMEOUT = 20.0


class HasFileno(Protocol):
    def fileno(self) -> int: ...


def dial(address: Address | str) -> socket.socket:
    """Return a connected blocking socket. Connecting waits for room in the accept backlog."""
    target: str | bytes | tuple[str, int]
    if isinstance(address, str):
        address = parse_address(address)
    if isinstance(address, UnixAddress):
        sock, target = socket.socket(socket.AF_UNIX), os.fsencode(address.path)
    else:
        assert isinstance(address, TCPAddress)
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        sock, target = socket.socket(family), (address.host, address.port)
        sock.settimeout(TIMEOUT)

    try:
        # With a timeout, a full backlog of a Unix socket would be an error.
        sock.connect(target)
    except OSError:
        sock.close()
        raise

    sock.settimeout(TIMEOUT)
    return sock


def receive(sock: socket.socket, count: int) -> bytes:
    """Read `count` bytes; fewer if EOF comes first."""
    data = bytearray()
    while len(data) < count and (chunk := sock.recv(min(count - len(data), 1 << 20))):
        data += chunk

    return bytes(data)


def receive_all(sock: socket.socket) -> bytes:
    """Read until EOF."""
    return b"".join(iter(lambda: sock.recv(65536), b""))


def exchange(sock: socket.socket, payload: bytes) -> bytes:
    """Send `payload`, then return as many bytes. It must fit the buffers of the kernels."""
    sock.sendall(payload)
    return receive(sock, len(payload))


def converse(sock: socket.socket, *parts: bytes) -> bytes:
    """Send each part as a segment, then a FIN; read until EOF, and close. All must fit the buffers."""
    with sock:
        for part in parts:
            sock.sendall(part)
        sock.shutdown(socket.SHUT_WR)
        return receive_all(sock)


def unread(descriptor: int | HasFileno) -> int:
    """Return the number of unread bytes in a pipe or in the receive buffer of a socket."""
    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)


def fill_backlog(listener: socket.socket, opened: ExitStack) -> None:
    """Connect until the kernel answers no more SYNs."""
    for _ in range(8):
        client = opened.enter_context(socket.socket())
        client.setblocking(False)
        client.connect_ex(listener.getsockname())


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


async def until_closed(server: Server, count: int = 1) -> None:
    """Wait until the server has closed `count` connections."""
    await until(lambda: server.stats.closed.total() >= count)
