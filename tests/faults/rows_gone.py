"""Row 24: a peer vanishes without FIN or RST."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from anyio import to_thread

from anyecho.address import TCPAddress
from anyecho.net.sockets import SocketOptions
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.faults.scene import TCP, served_in, time_limit
from tests.faults.table import Observed, Scene, injects
from tests.support.peers import dial, until

#: A peer at the other end of a link, in its own network namespace. Steps, each confirmed on standard output: it
#: connects and is echoed; sends until the buffers are full and reads nothing; takes its end of the link down.
PEER = """
import socket, subprocess, sys
def ip(*words): subprocess.run(["ip", *words], check=True)
def done(): print("done", flush=True); return sys.stdin.readline().split()
port, = done()
ip("addr", "add", "192.0.2.2/24", "dev", "link1")
ip("link", "set", "link1", "up")
idle, unread = (socket.create_connection(("192.0.2.1", int(port)), 10) for _ in range(2))
for sock in (idle, unread): sock.sendall(b"x"); assert sock.recv(1) == b"x"
unread.setblocking(False)
try:
    while True: unread.send(bytes(65536))
except BlockingIOError: pass
done()
ip("link", "set", "link1", "down")
done()
"""
HERE = """
link add link0 type veth peer name link1 netns {pid}
addr add 192.0.2.1/24 dev link0
link set link0 up
"""


class LinkedPeer:
    """Controls the peer at the other end of the link."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self._popen = popen

    def wait(self) -> None:
        assert self._popen.stdout is not None
        assert self._popen.stdout.readline() == "done\n"

    def go_on(self, *words: object) -> None:
        assert self._popen.stdin is not None
        print(*words, file=self._popen.stdin, flush=True)
        self.wait()


@contextmanager
def linked() -> Iterator[LinkedPeer]:
    command = ["unshare", "--net", sys.executable, "-c", PEER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as popen:
        try:
            peer = LinkedPeer(popen)
            peer.wait()
            subprocess.run(["ip", "-batch", "-"], input=HERE.format(pid=popen.pid), text=True, check=True)
            yield peer
        finally:
            popen.kill()


@injects(24, "a link goes down behind an idle peer and a peer with pending echo; limits of 1 s", alone=True)
async def link_down(_: Scene) -> Observed:
    by_default = SocketOptions._tcp_options
    sooner = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 1}
    options = ServeOptions(idle_timeout=math.inf, write_timeout=math.inf, linger=0.1)
    options = replace(options, socket=SocketOptions(tcp_user_timeout=1.0))
    with pytest.MonkeyPatch.context() as patch, linked() as peer:
        patch.setattr(SocketOptions, "_tcp_options", lambda self: by_default(self) | sooner)
        async with open_server("tcp://192.0.2.1:0", options=options) as server:
            [address] = server.addresses
            assert isinstance(address, TCPAddress)
            await to_thread.run_sync(peer.go_on, address.port)
            await until(lambda: any(each.bytes_received > each.bytes_sent for each in server.peers()))
            assert server.stats.active == 2
            await to_thread.run_sync(peer.go_on)
            start = time.monotonic()
            await until(lambda: server.stats.active == 0, 30)
            took = time.monotonic() - start
            await served_in(address)
            closed = {reason: server.stats.closed[reason] for reason in ("broken", "write")}

    assert closed == {"broken": 1, "write": 1}
    # An idle second, a probe, and another second; a zero window probe may be as late.
    assert took < time_limit(3)
    return {"closed": f"{closed} (the idle peer, and the peer with pending echo)", "after": f"{took:.1f} s"}


@injects(24, "nothing: the limits that accepted connections have by default")
async def limits_by_default(_: Scene) -> Observed:
    async with open_server(TCP) as server:
        with dial(server.addresses[0]):
            await until(lambda: server.stats.active == 1)
            [sock] = [connection.sock for connection in server._connections]
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            values = {
                name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in names
                if hasattr(socket, name)
            }

    assert list(values.values()) == [60, 10, 6, 60_000][: len(values)]
    return values
