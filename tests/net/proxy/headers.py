"""Build valid and invalid v2 PROXY headers without the code under test."""

from __future__ import annotations

__all__ = (
    "DESTINATION",
    "DESTINATION6",
    "IPV4",
    "IPV6",
    "SIGNATURE",
    "SOURCE",
    "SOURCE6",
    "UNIX",
    "checked",
    "crc32c",
    "tlv",
    "v2",
)

import struct
from ipaddress import IPv6Address

SIGNATURE = bytes.fromhex("0D0A0D0A000D0A515549540A")
IPV4 = bytes([192, 0, 2, 1, 192, 0, 2, 2]) + struct.pack("!HH", 56324, 443)
IPV6 = IPv6Address("2001:db8::1").packed + IPv6Address("2001:db8::2").packed + struct.pack("!HH", 56324, 443)
UNIX = b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0")
SOURCE, DESTINATION = ("192.0.2.1", 56324), ("192.0.2.2", 443)
SOURCE6, DESTINATION6 = ("2001:db8::1", 56324), ("2001:db8::2", 443)


def v2(block: bytes = b"", *, command: int = 0x21, kind: int = 0x11, size: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, kind, len(block) if size is None else size) + block


def tlv(kind: int, value: bytes, *, size: int | None = None) -> bytes:
    return struct.pack("!BH", kind, len(value) if size is None else size) + value


def crc32c(data: bytes) -> int:
    """Compute the checksum by polynomial division: slow, and independent of the code under test."""
    bits = "".join(f"{byte:08b}"[::-1] for byte in data)
    rest = (int(bits, 2) << 32) ^ (0xFFFFFFFF << len(bits))
    for at in range(len(bits) + 31, 31, -1):
        rest ^= (rest >> at & 1) * (0x11EDC6F41 << at - 32)

    return int(f"{rest:032b}"[::-1], 2) ^ 0xFFFFFFFF


def checked(before: bytes = b"", after: bytes = b"", *, size: int = 4) -> bytes:
    """Return a header with a checksum of `size` bytes (4 is valid) between the TLVs `before` and `after`."""
    zeroed = v2(IPV4 + before + tlv(3, bytes(size)) + after)
    at = len(zeroed) - len(after) - size
    return zeroed[:at] + crc32c(zeroed).to_bytes(size, "big") + zeroed[at + size :]
