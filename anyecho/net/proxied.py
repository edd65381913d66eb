"""Read a PROXY header from a socket, and decide which proxies are trusted.

`proxy_protocol` parses the header. The server sets the time limit and handles connections without a header.
"""

from __future__ import annotations

__all__ = ("HeaderReader", "TrustedNetworks", "name_of", "remote_address")

import os
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Self
from urllib.parse import quote_from_bytes

from anyio import BrokenResourceError, EndOfStream

from anyecho.errors import UsageError
from anyecho.net.fallback import Registration
from anyecho.net.proxy_protocol import HEADER_MAX, Header, SockAddr, Versions, parse_header

#: Excludes netmasks and hostmasks (10.0.0.0/255.0.0.0), which ipaddress accepts, and zones.
_CIDR = re.compile(r"[0-9A-Fa-f:.]+(/[0-9]+)?", re.A)
_MAPPED = IPv6Network("::ffff:0:0/96")


@dataclass(eq=False)
class HeaderReader:
    """Reads the PROXY header at the start of the non-blocking `sock`, and no byte after it.

    Afterwards TLS or a stream can use `sock` and `registration`: no bytes have to be pushed back.
    """

    sock: socket.socket
    registration: Registration
    versions: Versions = "require"
    _consumed: bytes = field(default=b"", init=False, repr=False)

    async def read(self) -> Header:
        """Wait for the header and return it, without a time limit. After cancellation, the next call continues.

        Raises `ProxyProtocolError` at the first byte that cannot belong to a header, `EndOfStream` at an EOF before
        its end, `BrokenResourceError` after a reset, `ClosedResourceError` if the registration is closed.
        """
        while True:
            await self.registration.readable()
            try:
                if (header := self._try_read()) is not None:
                    return header
            except BlockingIOError:
                self.registration.may_read = False
            except OSError as exc:
                raise BrokenResourceError from exc

    def read_now(self) -> Header | None:
        """Return the header if it is complete, else None: a last try after a time-out. Raises as `read`."""
        try:
            return self._try_read()
        except BlockingIOError:
            return None
        except OSError as exc:
            raise BrokenResourceError from exc

    def _try_read(self) -> Header | None:
        peeked = self.sock.recv(HEADER_MAX - len(self._consumed), socket.MSG_PEEK)
        if not peeked:
            raise EndOfStream

        header = parse_header(self._consumed + peeked, self.versions)
        # All bytes of an incomplete header belong to it, so they are consumed: unread bytes would make a
        # level-triggered wait return at once for ever. poll(2) ignores SO_RCVLOWAT on Unix sockets.
        size = len(peeked) if header is None else header.length - len(self._consumed)
        self._consumed += self.sock.recv(size)
        return header


@dataclass(frozen=True)
class TrustedNetworks:
    """The trusted proxies. Test ``sockaddr in trusted``, as accept(2) returned it; IPv4-mapped counts as IPv4.

    NAT64 does not count as IPv4: the local kernel makes mapped addresses, but any router may let a packet from
    64:ff9b::/96 pass. Such an address must not hold a private IPv4 address (RFC 6052, section 3.1).
    """

    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    unix: bool = False

    @classmethod
    def parse(cls, texts: Collection[str]) -> Self:
        """Parse addresses and networks (``10.0.0.0/8``, ``::1``), and ``unix:`` for all peers on Unix sockets.

        Raises `UsageError`, a line that names what is wrong.
        """
        networks = [text for text in texts if text != "unix:"]
        return cls(tuple(map(_parse_network, networks)), unix=len(networks) < len(texts))

    def __contains__(self, sockaddr: Any) -> bool:
        if not isinstance(sockaddr, tuple):
            return self.unix

        address = ip_address(sockaddr[0])
        if address.version == 6:
            address = address.ipv4_mapped or address

        return any(address in network for network in self.networks)


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

    host: str = sockaddr[0]
    return host.removeprefix("::ffff:") if "." in host else host, sockaddr[1]


def _parse_network(text: str) -> IPv4Network | IPv6Network:
    try:
        if not _CIDR.fullmatch(text):
            raise ValueError
        network = ip_network(text, strict=False)
    except ValueError:
        raise UsageError(f"bad network {text!r}: write it like 10.0.0.0/8, 2001:db8::/32, ::1 or unix:") from None

    if "/" in text and ip_network(text.partition("/")[0]).network_address != network.network_address:
        raise UsageError(f"bad network {text!r}: its address has bits behind the prefix; {network} has none")
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))

    return network
