"""UDP peers made of plain sockets, forged datagrams, and injected socket errors."""

from __future__ import annotations

__all__ = ("fail", "forge", "forger", "polled_client", "udp_client")

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from anyecho.address import Address, UDPAddress
from anyecho.client.client import Client
from anyecho.net.poller import Fallback, Poller
from anyecho.net.sockets import SocketOptions
from anyecho.net.udp import mmsg
from anyecho.net.udp.stream import connect_datagrams
from tests.support.machine import skip


@contextmanager
def udp_client(address: Address | str, *, source: str = "", connected: bool = True) -> Iterator[socket.socket]:
    """Yield a blocking client socket. If `connected`, it receives from `address` only."""
    if isinstance(address, str):
        host, _, port = address.removeprefix("udp://").rpartition(":")
        address = UDPAddress(host=host.strip("[]"), port=int(port))
    assert isinstance(address, UDPAddress)
    with socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        if source:
            sock.bind((source, 0))
        if connected:
            sock.connect((address.host, address.port))
        yield sock


@contextmanager
def forger() -> Iterator[socket.socket]:
    """Yield a raw socket for `forge`."""
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except PermissionError:
        skip("the right to forge a source (only root has it)")
    with raw:
        yield raw


def forge(raw: socket.socket, source: tuple[str, int], address: Address, payload: bytes = b"forged") -> None:
    """Send `payload` to `address` as if it came from `source` (RFC 791, RFC 768; no checksum)."""
    assert isinstance(address, UDPAddress)
    datagram = struct.pack("!4H", source[1], address.port, 8 + len(payload), 0) + payload
    sender, receiver = (socket.inet_aton(host) for host in (source[0], address.host))
    header = struct.pack(
        *("!BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 0, 0, 64, socket.IPPROTO_UDP, 0),
        *(sender, receiver),
    )
    raw.sendto(header + datagram, (address.host, 0))


def fail(monkeypatch: pytest.MonkeyPatch, direction: str, *names: str) -> None:
    """Let system calls that send or receive datagrams fail once with each errno of `names`, then work again.

    An empty name is a call that works, for one datagram only.
    """
    failures = [getattr(errno, name) if name else 0 for name in names]

    def one_by_one(work: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*arguments: Any) -> Any:
            if failures and (code := failures.pop(0)):
                raise OSError(code, os.strerror(code))
            return work(*arguments)

        return failing

    def in_batches(work: Callable[..., Any]) -> Callable[..., Any]:
        def failing(descriptor: int, at: int, count: int, *rest: Any) -> Any:
            if not failures:
                return work(descriptor, at, count, *rest)
            if not (code := failures.pop(0)):
                return work(descriptor, at, 1, *rest)
            ctypes.set_errno(code)
            return -1

        return failing

    for method in {"send": ("sendto", "sendmsg"), "recv": ("recvfrom_into", "recvmsg_into")}[direction]:
        monkeypatch.setattr(socket.socket, method, one_by_one(getattr(socket.socket, method)))
    if mmsg.HAVE_MMSG:
        call = f"_{direction}mmsg"
        monkeypatch.setattr(mmsg, call, in_batches(getattr(mmsg, call)))


async def polled_client(address: Address, poller: Poller | Fallback | None) -> Client:
    """Return a client at `address` whose readiness `poller` reports; if it is None, the event loop."""
    assert isinstance(address, UDPAddress)
    return Client(await connect_datagrams(address, options=SocketOptions(), poller=poller), address=address)
