"""The accepting side of the PROXY protocol: taking a header off a socket, and whom to believe one.

What a header says, `proxy_protocol` knows. How long it may take, and what becomes of a connection without one,
others decide.
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

#: Without masks written as addresses, of which ipaddress takes two kinds, and without zones.
_CIDR = re.compile(r"[0-9A-Fa-f:.]+(/[0-9]+)?", re.A)
_MAPPED = IPv6Network("::ffff:0:0/96")


@dataclass(eq=False)
class HeaderReader:
    """Reads the header that comes first on `sock`, a non-blocking one, and not a byte of what follows.

    So nothing has to be pushed back: afterwards `sock` and `registration` are as good as new, for TLS or a stream.
    """

    sock: socket.socket
    registration: Registration
    versions: Versions = "require"
    _consumed: bytes = field(default=b"", init=False, repr=False)

    async def read(self) -> Header:
        """The header, once; it sets no time limit. A cancelled call loses nothing: another one goes on.

        Raises `ProxyProtocolError` for what is no header, as early as that can be said; `EndOfStream` if the peer
        is done before it is complete; `BrokenResourceError` and `ClosedResourceError` as a stream does.
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
        """The header if the rest of it has come, else None, for a caller whose time is over. Raises as `read`."""
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
        # What an incomplete header has brought is all its own, and is taken: left there, a level-triggered wait
        # would report it for ever. SO_RCVLOWAT does not help: poll(2) does not heed it on Unix sockets.
        size = len(peeked) if header is None else header.length - len(self._consumed)
        self._consumed += self.sock.recv(size)
        return header


@dataclass(frozen=True)
class TrustedNetworks:
    """Peers whose headers are believed; ask ``sockaddr in trusted``, as accept(2) has it. IPv4-mapped is IPv4.

    NAT64 is not: mapped addresses are made by this machine's kernel, but an address of 64:ff9b::/96 says only what
    the routers on the way let pass, and no private IPv4 address may be in one (RFC 6052, section 3.1).
    """

    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    unix: bool = False

    @classmethod
    def parse(cls, texts: Collection[str]) -> Self:
        """From addresses and networks (``10.0.0.0/8``, ``::1``), and ``unix:`` for peers on Unix sockets.

        Raises `UsageError`, one line that names what is wrong.
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
    """What logs call whom a header named: as `peer_name` does, ``192.0.2.1_56324``, or ``unix_/run/app``.

    Of a path, which may hold anything, what is odd is percent-encoded: a log line stays one, and so do its words.
    """
    if isinstance(source, tuple):
        return f"{source[0]}_{source[1]}"

    abstract = source.startswith("\0")
    return f"unix_{'@' if abstract else ''}{quote_from_bytes(os.fsencode(source[abstract:]), safe='/:,+=~')}"


def remote_address(sock: socket.socket) -> SockAddr:
    """Who is at the other end of `sock`, as a header would name it. Raises the `OSError` of one that is gone."""
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
