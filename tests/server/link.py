"""Run by a test, alone in a network namespace: what a server on every interface does on a link of its own.

Prints what came back from the link-local address, and what was dropped.
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

#: What ip(8) prepares the namespace with.
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
            sock.settimeout(5)
            # Its address says nothing of a link, so that the answer to it has to.
            sock.bind(("2001:db8::1", 0))
            sock.sendto(b"neighbour", ("fe80::1", address.port, 0, index))
            answer: tuple[bytes, Any] = await to_thread.run_sync(sock.recvfrom, 100)
            sock.sendto(b"anybody?", ("ff02::1", address.port, 0, index))
            # The link has two ends, and both are in the group.
            await until(lambda: server.stats.datagrams.received == 3)

        print(answer[0], answer[1][0], dict(server.stats.datagrams.dropped))


if __name__ == "__main__":
    [backend] = [word for word in BACKENDS if word == sys.argv[1]]
    mmsg.HAVE_MMSG = sys.argv[2] == "batched"
    run(main, backend=backend)
