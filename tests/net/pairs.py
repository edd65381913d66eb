"""Pairs of connected TCP or Unix sockets, and streams over them."""

from __future__ import annotations

__all__ = ("KINDS", "raw_pair", "reset", "stream_over", "stream_pair")

import socket
import struct

from anyecho.net.poller import Fallback, Poller
from anyecho.net.stream import PolledStream

KINDS = ("tcp", "unix")


def raw_pair(kind: str) -> tuple[socket.socket, socket.socket]:
    """Return two connected blocking sockets."""
    if kind == "unix":
        return socket.socketpair()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        right, _ = listener.accept()

    for sock in (left, right):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)

    return left, right


def stream_over(sock: socket.socket, poller: Poller | Fallback, *, budget: int = 1) -> PolledStream:
    sock.setblocking(False)
    return PolledStream(sock, poller.register(sock), budget=budget)


def stream_pair(kind: str, poller: Poller | Fallback) -> tuple[PolledStream, PolledStream]:
    left, right = raw_pair(kind)
    return stream_over(left, poller), stream_over(right, poller)


def reset(sock: socket.socket) -> None:
    """Close a TCP socket so that its peer gets a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
