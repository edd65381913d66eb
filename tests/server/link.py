"""Program of a test in its own network namespace: a UDP server on all interfaces, with a client on a link.

Prints the reply from the link-local address, its source, and the counters of dropped datagrams.
"""

from __future__ import annotations

__all__ = ("LINK",)

import socket
import sys
from typing import Any

from anyio import to_thread

from anyecho.address import UDPAddress
from anyecho.backends import BACKENDS, run
from anyecho.net.udp import mmsg
from anyecho.server.server import open_server
from tests.support.peers import until

#: Commands for ip(8) that prepare the namespace.
LINK = """
link set lo up
link add link0 type veth peer name link1
link set link0 up
link set link1 up
addr add fe80::1/64 dev link0 nodad
addr add 2001:db8::1/64 dev link0 nodad
"""


async def main() -> None:
    async with open_server("udp://:0") as server:
        address = server.addresses[-1]
        assert isinstance(address, UDPAddress)
        index = socket.if_nametoindex("link0")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.settimeout(15)
            # This address has no scope id, so the reply must name the interface.
            sock.bind(("2001:db8::1", 0))
            sock.sendto(b"neighbour", ("fe80::1", address.port, 0, index))
            reply: tuple[bytes, Any] = await to_thread.run_sync(sock.recvfrom, 100)
            sock.sendto(b"multicast", ("ff02::1", address.port, 0, index))
            # Both ends of the link are in the multicast group.
            await until(lambda: server.stats.datagrams.received == 3)

        print(reply[0], reply[1][0], dict(server.stats.datagrams.dropped))


if __name__ == "__main__":
    [backend] = [word for word in BACKENDS if word == sys.argv[1]]
    mmsg.HAVE_MMSG = sys.argv[2] == "batched"
    run(main, backend=backend)
