"""Wires: the non-blocking reads and writes of a connection, the same for plain bytes and for TLS.

A wire never waits, and registers nothing. Its caller waits for events of `sock`, counts bytes, and closes `sock`.
"""

from __future__ import annotations

__all__ = ("PlainWire", "Wire")

import socket
from typing import Protocol


class Wire(Protocol):
    """A connected, non-blocking byte stream.

    Every method raises `OSError` if the connection is broken. After that, or after an EOF, only `sock` is of use.
    """

    @property
    def sock(self) -> socket.socket:
        """The socket to wait for."""

    @property
    def established(self) -> bool:
        """Whether the handshake is complete. Before that, call nothing but `handshake` and `flush`."""

    def handshake(self) -> bool:
        """Take the handshake as far as possible; return `established`.

        If it is not complete, call it again when `sock` is readable, or writable if bytes are `pending`.
        """

    def read_into(self, buffer: memoryview, /) -> int:
        """Return how many bytes of input were written to `buffer`: 0 is EOF.

        Raises `BlockingIOError` if there is none. Input is drained after that error or a count below the length of
        `buffer`, unless `has_input`.
        """

    @property
    def has_input(self) -> bool:
        """Whether input may be left that no event reports: read again, after other connections had their turn."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Return how many bytes of `data` were accepted, at least 1. They may be `pending`.

        Raises `BlockingIOError` if none are: wait until `sock` is writable, or if `write_blocked`, read first.
        """

    @property
    def write_blocked(self) -> bool:
        """Whether `write` accepts nothing before more input is read, although `sock` may be writable."""

    @property
    def pending(self) -> bool:
        """Whether accepted bytes, or bytes that the protocol sends by itself, wait for the kernel: call `flush`."""

    def flush(self) -> bool:
        """Send what the kernel takes; return whether nothing is `pending`. If false, wait until writable."""

    def shutdown(self) -> None:
        """Half-close: the peer reads EOF after all accepted bytes. Reading goes on. Call it once.

        If bytes are `pending`, the EOF is too.
        """


class PlainWire:
    """A wire that adds nothing: `read_into` and `write` are methods of `sock`, without a frame of their own."""

    __slots__ = ("read_into", "sock", "write")

    established = True
    has_input = False
    write_blocked = False
    pending = False

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.read_into = sock.recv_into
        self.write = sock.send

    def handshake(self) -> bool:
        return True

    def flush(self) -> bool:
        return True

    def shutdown(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)
