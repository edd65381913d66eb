"""Which peers may send a PROXY header."""

from __future__ import annotations

__all__ = ("TrustedNetworks",)

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Self

from anyecho.errors import UsageError
from anyecho.net.names import unmapped

#: Excludes netmasks and hostmasks (10.0.0.0/255.0.0.0), which ipaddress accepts, and zones.
_CIDR = re.compile(r"[0-9A-Fa-f:.]+(/[0-9]+)?", re.A)
_MAPPED = IPv6Network("::ffff:0:0/96")


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

        address = ip_address(unmapped(sockaddr[0]))
        return any(address in network for network in self.networks)


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
