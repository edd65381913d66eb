"""Run by a test, alone in a network namespace: a link goes down behind an idle peer and a peer with pending echo.

Prints the reasons with which the server closes both connections.
"""

from __future__ import annotations

import math
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias, get_args

from anyio import to_thread

from anyecho.address import TCPAddress
from anyecho.backends import BACKENDS, run
from anyecho.net.sockets import SocketOptions
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.support.peers import until

Engine: TypeAlias = Literal["tasks", "events"]

#: A peer at the other end of a link, in its own network namespace. Steps, each confirmed on standard output: it
#: connects and is echoed; sends until the buffers are full and reads nothing; takes its end of the link down.
PEER = """
import socket, subprocess, sys
def ip(*words): subprocess.run(["ip", *words], check=True)
def done(): print("done", flush=True); return sys.stdin.readline().split()
port, = done()
ip("addr", "add", "192.0.2.2/24", "dev", "link1")
ip("link", "set", "link1", "up")
idle, unread = socket.socket(), socket.socket()
unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
for sock in (idle, unread): sock.connect(("192.0.2.1", int(port))); sock.sendall(b"x"); assert sock.recv(1) == b"x"
unread.setblocking(False)
try:
    while True: unread.send(bytes(65536))
except BlockingIOError: pass
done()
ip("link", "set", "link1", "down")
done()
"""
LINK = """
link add link0 type veth peer name link1 netns {pid}
addr add 192.0.2.1/24 dev link0
link set link0 up
"""


class Impatient(SocketOptions):
    """The kernel sends a keepalive probe after a second, and gives up after another."""

    def _options_for(self, sock: socket.socket) -> Iterator[tuple[int, str, int]]:
        yield from super()._options_for(sock)
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"):
            yield socket.IPPROTO_TCP, name, 1


@contextmanager
def linked() -> Iterator[Callable[..., None]]:
    """Start the peer, and link it to this namespace. Yields a function that starts its next step."""
    command = ["unshare", "--net", sys.executable, "-c", PEER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:

        def wait() -> None:
            assert peer.stdout is not None
            assert peer.stdout.readline() == "done\n"

        def go_on(*words: object) -> None:
            print(*words, file=peer.stdin, flush=True)
            wait()

        try:
            wait()
            subprocess.run(["ip", "-batch", "-"], input=LINK.format(pid=peer.pid), text=True, check=True)
            yield go_on
        finally:
            peer.kill()


async def main(engine: Engine) -> None:
    # Small buffers: the kernels cannot take all the echo, however early the peer's send buffer was full.
    limits = Impatient(tcp_user_timeout=1.0, sndbuf=4096)
    options = ServeOptions(engine=engine, idle_timeout=math.inf, write_timeout=math.inf, linger=0.1, socket=limits)
    with linked() as go_on:
        async with open_server("tcp://192.0.2.1:0", options=options) as server:
            [address] = server.addresses
            assert isinstance(address, TCPAddress)
            await to_thread.run_sync(go_on, address.port)
            await to_thread.run_sync(go_on)
            await until(lambda: server.stats.active == 0, 30)
            print(sorted(server.stats.closed.items()))


if __name__ == "__main__":
    [backend] = [word for word in BACKENDS if word == sys.argv[1]]
    [engine] = [word for word in get_args(Engine) if word == sys.argv[2]]
    run(main, engine, backend=backend)
