"""Names and addresses of peers, and which of them count as one source.

This module opens no sockets and looks up no names.
"""

from __future__ import annotations

__all__ = (
    "SockAddr",
    "address_of",
    "host_name",
    "is_host_name",
    "name_of",
    "peer_name",
    "remote_address",
    "source_key",
    "unmapped",
)

import os
import re
import socket
import struct
from functools import lru_cache
from itertools import count
from typing import Any, TypeAlias
from urllib.parse import quote_from_bytes

from anyecho.address import Address, TCPAddress, UDPAddress, UnixAddress

#: (host, port), or the path of a Unix socket; an abstract name follows a NUL.
SockAddr: TypeAlias = tuple[str, int] | str

#: Prefixes followed by an IPv4 address: IPv4-mapped (RFC 4291) and the well-known prefix of NAT64 (RFC 6052).
_MAPPED = bytes(10) + b"\xff\xff"
_EMBEDDED_IPV4 = (_MAPPED, b"\x00\x64\xff\x9b" + bytes(8))
#: The local-use NAT64 prefix 64:ff9b:1::/48 (RFC 8215).
_LOCAL_NAT64 = b"\x00\x64\xff\x9b\x00\x01"

_unix_peers = count(1)


def host_name(host: str) -> str:
    """Return `host` without the trailing dot of a fully qualified name, as in certificates and SNI (RFC 6066)."""
    return host if host.endswith("..") else host.removesuffix(".")


def is_host_name(text: str) -> bool:
    """Return whether `text` is valid for SNI: labels of 1 to 63 bytes, 253 in all (RFC 1035, section 2.3.4)."""
    name = host_name(text)
    try:
        size = len(name.encode("idna"))
    except UnicodeError:
        return False

    return (
        0 < size <= 253
        and not name.endswith(".")
        and name.isprintable()
        and not re.search(r"[\s/?#@\[\]\\%]", name)
    )


@lru_cache(maxsize=16384)
def unmapped(host: str) -> str:
    """Return the IPv4 address of an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2), else `host`."""
    if ":" not in host:
        return host
    try:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except (OSError, ValueError):
        return host

    return socket.inet_ntop(socket.AF_INET, packed[12:]) if packed.startswith(_MAPPED) else host


@lru_cache(maxsize=16384)
def source_key(host: str) -> str | bytes:
    """Return the key under which limits per source count `host`: an IPv4 address, or an IPv6 /64.

    A host can take any address of its /64 (RFC 6177), link-local addresses included; the zone is ignored. Behind
    NAT64 all of IPv4 is in one /64, so an address of the well-known prefix counts as the IPv4 address in it. In
    64:ff9b:1::/48 each network chooses the position of the IPv4 address, so the whole address is the key.

    Use the key for limits, not for trust: a router can let any host use an address of these prefixes.
    """
    if ":" not in host:
        return host

    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    if packed.startswith(_EMBEDDED_IPV4):
        return socket.inet_ntop(socket.AF_INET, packed[12:])

    return packed if packed.startswith(_LOCAL_NAT64) else packed[:8]


def address_of(sock: socket.socket, *, tls: bool = False) -> Address:
    """Return the address that `sock` is bound to. `tls` has no effect for a datagram socket."""
    sockaddr = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return UnixAddress(path=os.fsdecode(sockaddr), tls=tls)

    host: str = sockaddr[0]
    if sock.family == socket.AF_INET6 and sockaddr[3] and "%" not in host:
        host += f"%{socket.if_indextoname(sockaddr[3])}"
    if sock.type == socket.SOCK_DGRAM:
        return UDPAddress(host=unmapped(host), port=sockaddr[1])

    return TCPAddress(host=unmapped(host), port=sockaddr[1], tls=tls)


def peer_name(sock: socket.socket, sockaddr: Any) -> str:
    """Return a short name for logs: ``::1_64624``, or with the pid of a Unix peer, ``unix_4711``.

    If the kernel gives no pid, the name has a number unique in this process, ``unix_n1``.
    """
    if sock.family != socket.AF_UNIX:
        host, port = sockaddr[:2]
        return f"{unmapped(host)}_{port}"

    try:
        pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except (AttributeError, OSError):
        pid = 0

    return f"unix_{pid}" if pid else f"unix_n{next(_unix_peers)}"


def name_of(source: SockAddr) -> str:
    """Return the log name of an asserted source, as `peer_name`: ``192.0.2.1_56324``, or ``unix_/run/app``.

    A path may hold any byte. Spaces, control and other special characters are percent-encoded.
    """
    if isinstance(source, tuple):
        return f"{source[0]}_{source[1]}"

    abstract = source.startswith("\0")
    return f"unix_{'@' if abstract else ''}{quote_from_bytes(os.fsencode(source[abstract:]), safe='/:,+=~')}"


def remote_address(sock: socket.socket) -> SockAddr:
    """Return the address of the peer of `sock` in the form of a header. Raises `OSError` if it is disconnected."""
    sockaddr = sock.getpeername()
    if not isinstance(sockaddr, tuple):
        return os.fsdecode(sockaddr)

    return unmapped(sockaddr[0]), sockaddr[1]
