"""Parse and format PROXY protocol headers, versions 1 and 2, which carry the address of a proxy's client.

The specification is HAProxy's ``doc/proxy-protocol.txt``. This module handles bytes only: it does no I/O, and does
not decide which connections have a header (the configuration must, not the bytes) or which proxies are trusted.
"""

from __future__ import annotations

__all__ = ("HEADER_MAX", "Header", "ProxyProtocolError", "Versions", "encode_header", "parse_header")

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Literal, TypeAlias

from anyecho.errors import AnyechoError, UsageError
from anyecho.net.names import SockAddr, unmapped

#: The versions that a listener accepts; ``require`` is either of them.
Versions: TypeAlias = Literal["v1", "v2", "require"]

#: The longest header that is accepted, as in nginx. The format allows 65,551 bytes, but is meant to fit a segment
#: of 536; a client certificate among the TLVs adds one or two KiB.
HEADER_MAX = 4096

_V1_SIGNATURE = b"PROXY "
_V1_MAX = 107  # the longest line with its CRLF (section 2.1)
#: An incomplete line after its first two words.
_V1_PREFIX = re.compile(rb"PROXY (TCP[46] [0-9A-Fa-f:. ]*|UNKNOWN( .*)?)\r?", re.S)

_V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_V2_FIXED = 16
_V2_LOCAL, _V2_PROXY = 0x20, 0x21
#: Address family and transport, in one byte -> layout of the addresses. If either is 0 (unspecified), the length of
#: the addresses is unknown and the rest of the header is skipped.
_IPV4, _IPV6, _UNIX = struct.Struct("!4s4sHH"), struct.Struct("!16s16sHH"), struct.Struct("!108s108s")
_V2_BLOCKS = {0x11: _IPV4, 0x12: _IPV4, 0x21: _IPV6, 0x22: _IPV6, 0x31: _UNIX, 0x32: _UNIX}
_CRC32C, _NOOP, _UNIQUE_ID = 0x03, 0x04, 0x05
#: CRC-32c table (RFC 4960, appendix B). Without it, the longest header would cost 3 ms.
_CRC_TABLE = [reduce(lambda crc, _: crc >> 1 ^ (crc & 1) * 0x82F63B78, range(8), byte) for byte in range(256)]


class ProxyProtocolError(AnyechoError, ValueError):
    """The proxy sent no valid header. Close the connection."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """A parsed header, `length` bytes long.

    `source` is None for LOCAL, UNKNOWN and unspecified addresses: use the addresses of the socket then.
    IPv4-mapped addresses are given as IPv4. Do not rely on the addresses unless the proxy is trusted. A path may
    hold any character, and may be empty.
    """

    version: Literal[1, 2]
    length: int
    command: Literal["local", "proxy"] = "proxy"
    source: SockAddr | None = None
    destination: SockAddr | None = None
    tlvs: tuple[tuple[int, bytes], ...] = ()


def parse_header(data: bytes, versions: Versions = "require") -> Header | None:
    """Return the header at the start of `data`, all bytes received so far; None if it is incomplete.

    Raises `ProxyProtocolError` as soon as `data` cannot become a header of the `versions`.
    """
    if versions != "v2" and _V1_SIGNATURE.startswith(data[: len(_V1_SIGNATURE)]):
        return _parse_v1(data)
    if versions != "v1" and _V2_SIGNATURE.startswith(data[: len(_V2_SIGNATURE)]):
        return _parse_v2(data)

    wanted = "v1 or v2" if versions == "require" else versions
    raise ProxyProtocolError(f"no PROXY {wanted} header: it begins with {data[:16]!r}")


def encode_header(version: Literal["v1", "v2"], source: Any, destination: Any) -> bytes:
    """Return the header for a connection from `source` to `destination`, addresses as getsockname(2) returns them.

    It is UNKNOWN or LOCAL if an address is None, if `version` cannot express it, or if IP and Unix are mixed. An
    IPv4 address beside an IPv6 address is mapped. Raises `UsageError` if an address is invalid.
    """
    try:
        if isinstance(source, tuple) and isinstance(destination, tuple):
            return _encode_inet(version, source, destination)
        if version == "v2" and isinstance(source, str | bytes) and isinstance(destination, str | bytes):
            return _encode_v2(0x31, _encode_path(source) + _encode_path(destination))
    except (ValueError, struct.error) as exc:
        raise UsageError(f"no PROXY header can name {source!r} and {destination!r}: {exc}") from exc

    return b"PROXY UNKNOWN\r\n" if version == "v1" else _encode_v2(0, b"")


def _encode_inet(version: Literal["v1", "v2"], source: tuple[Any, ...], destination: tuple[Any, ...]) -> bytes:
    # A zone has no meaning on another machine.
    first, second = (ip_address(unmapped(host.partition("%")[0])) for host, *_ in (source, destination))
    if first.version != second.version:
        first, second = (IPv6Address(f"::ffff:{each}") if each.version == 4 else each for each in (first, second))

    kind, block = (0x11, _IPV4) if first.version == 4 else (0x21, _IPV6)
    packed = block.pack(first.packed, second.packed, source[1], destination[1])
    if version == "v2":
        return _encode_v2(kind, packed)

    return f"PROXY TCP{first.version} {first} {second} {source[1]} {destination[1]}\r\n".encode()


def _encode_v2(kind: int, block: bytes) -> bytes:
    return _V2_SIGNATURE + struct.pack("!BBH", _V2_PROXY if kind else _V2_LOCAL, kind, len(block)) + block


def _encode_path(path: str | bytes) -> bytes:
    if len(name := os.fsencode(path)) > 108:
        raise ValueError("a path can have 108 bytes")

    return name.ljust(108, b"\0")


def _parse_v1(data: bytes) -> Header | None:
    line, crlf, _ = data[:_V1_MAX].partition(b"\r\n")
    if not crlf:
        _check_v1_prefix(data)
        return None

    length = len(line) + 2
    _, protocol, *words = line.split(b" ")
    if protocol == b"UNKNOWN":  # the receiver must ignore the rest of the line
        return Header(version=1, length=length)
    if protocol not in (b"TCP4", b"TCP6"):
        raise ProxyProtocolError(f"the protocol is {protocol!r}, not TCP4, TCP6 or UNKNOWN")
    if len(words) != 4:
        raise ProxyProtocolError("not two addresses and two ports after the protocol, one space before each")

    source, destination = ((_parse_host(words[i], protocol), _parse_port(words[i + 2])) for i in (0, 1))
    return Header(version=1, length=length, source=source, destination=destination)


def _check_v1_prefix(data: bytes) -> None:
    """Raise `ProxyProtocolError` if the incomplete line `data` cannot become a header."""
    if len(data) >= _V1_MAX:
        raise ProxyProtocolError(f"no CRLF within {_V1_MAX} bytes")

    words = (b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN")
    if not any(word.startswith(data) for word in words) and not _V1_PREFIX.fullmatch(data):
        raise ProxyProtocolError(f"no line of the protocol: {data!r}")


def _parse_host(word: bytes, protocol: bytes) -> str:
    # The specification does not mention IPv6 with a dotted end, but HAProxy sends it (by inet_ntop(3)) if one of
    # the two addresses is IPv4. A zone would be an interface of the proxy's machine.
    try:
        if b"%" in word:
            raise ValueError
        return unmapped(str((IPv4Address if protocol == b"TCP4" else IPv6Address)(word.decode())))
    except ValueError:
        raise ProxyProtocolError(f"{word!r} is no address of {protocol.decode()}") from None


def _parse_port(word: bytes) -> int:
    if not re.fullmatch(rb"0|[1-9][0-9]{0,4}", word) or int(word) > 65535:
        raise ProxyProtocolError(f"{word!r} is no port")

    return int(word)


def _parse_v2(data: bytes) -> Header | None:
    _check_v2_prefix(data)
    if len(data) < _V2_FIXED:
        return None

    command, kind, size = struct.unpack_from("!BBH", data, len(_V2_SIGNATURE))
    length = _V2_FIXED + size
    block = None if command == _V2_LOCAL else _V2_BLOCKS.get(kind)
    if length > HEADER_MAX:
        raise ProxyProtocolError(f"a header of {length} bytes; more than {HEADER_MAX} are not taken")
    if block is not None and size < block.size:
        raise ProxyProtocolError(f"{size} bytes cannot hold addresses of kind {kind:#04x}, which take {block.size}")
    if len(data) < length:
        return None

    # LOCAL is a connection of the proxy itself; addresses that follow are ignored.
    if block is None:
        return Header(version=2, length=length, command="local" if command == _V2_LOCAL else "proxy")

    source, destination = _parse_addresses(block, data)
    tlvs = tuple(_parse_tlvs(data[:length], _V2_FIXED + block.size))
    return Header(version=2, length=length, source=source, destination=destination, tlvs=tlvs)


def _check_v2_prefix(data: bytes) -> None:
    command, kind = data[12:13], data[13:14]
    if command and command[0] >> 4 != 2:
        raise ProxyProtocolError(f"version {command[0] >> 4} of the binary header; there is 2 only")
    if command and command[0] not in (_V2_LOCAL, _V2_PROXY):
        raise ProxyProtocolError(f"command {command[0] & 15}; there are 0 (LOCAL) and 1 (PROXY)")
    if kind and command[0] == _V2_PROXY and (kind[0] >> 4 > 3 or kind[0] & 15 > 2):
        raise ProxyProtocolError(f"address family {kind[0] >> 4} or transport {kind[0] & 15} is not defined")


def _parse_addresses(block: struct.Struct, data: bytes) -> tuple[SockAddr, SockAddr]:
    source, destination, *ports = block.unpack_from(data, _V2_FIXED)
    if block is _UNIX:
        return _parse_path(source), _parse_path(destination)

    return (unmapped(str(ip_address(source))), ports[0]), (unmapped(str(ip_address(destination))), ports[1])


def _parse_path(field: bytes) -> str:
    # A leading NUL marks an abstract name. After the NUL that ends a path may be uninitialised memory of the proxy.
    return os.fsdecode(field.rstrip(b"\0") if field[:1] == b"\0" else field.partition(b"\0")[0])


def _parse_tlvs(header: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at < len(header):
        kind, size = header[at], int.from_bytes(header[at + 1 : at + 3], "big")
        at += 3 + size
        if at > len(header):
            raise ProxyProtocolError(f"a TLV ends {at - len(header)} bytes behind the header")
        if kind == _UNIQUE_ID and size > 128:
            raise ProxyProtocolError(f"a unique ID of {size} bytes; it can have 128")
        if kind == _CRC32C:
            zeroed = header[: at - size] + bytes(size) + header[at:]
            if size != 4 or _crc32c(zeroed) != int.from_bytes(header[at - size : at], "big"):
                raise ProxyProtocolError("the checksum is wrong")
        if kind != _NOOP:
            yield kind, header[at - size : at]


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]

    return crc ^ 0xFFFFFFFF
