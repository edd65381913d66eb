"""A server behind HAProxy: its PROXY headers are understood, and accepted only if it is trusted."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from anyio import to_thread

from anyecho.address import Address, TCPAddress, UnixAddress, parse_address
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.support.machine import LOOPBACK_HOSTS, program
from tests.support.peers import dial, receive, receive_all, until
from tests.support.process import TIMEOUT

#: HAProxy inherits a listening socket: no test waits for it or guesses a port.
CONFIG = """
global
    maxconn 100
defaults
    mode tcp
    retries 0
    timeout connect {timeout}s
    timeout client {timeout}s
    timeout server {timeout}s
listen echo
    bind fd@{descriptor}
    server echo {server} {option}
"""

#: Starts HAProxy in front of an address, with an option of its `server` line; returns its address.
Starter = Callable[[Address, str], Address]


@pytest.fixture(params=LOOPBACK_HOSTS)
def haproxy(request: pytest.FixtureRequest, short_path: Path) -> Iterator[Starter]:
    host: str = request.param
    with ExitStack() as opened:

        def start(address: Address, option: str) -> Address:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = opened.enter_context(socket.create_server((host, 0), family=family))
            config = short_path / "haproxy.cfg"
            config.write_text(
                CONFIG.format(
                    timeout=int(TIMEOUT),
                    descriptor=listener.fileno(),
                    server=f"unix@{address.path}" if isinstance(address, UnixAddress) else str(address)[6:],
                    option=option,
                )
            )
            process = subprocess.Popen(
                [program("haproxy"), "-db", "-f", str(config)],
                pass_fds=[listener.fileno()],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            opened.callback(process.wait)
            opened.callback(process.kill)
            return TCPAddress(host=host, port=listener.getsockname()[1])

        yield start


@pytest.mark.parametrize(("option", "mode"), [("send-proxy", "v1"), ("send-proxy-v2", "v2")])
@pytest.mark.by_turns("anyio_backend")
async def test_the_clients_own_address_is_in_the_stats(
    option: str, mode: str, haproxy: Starter, carrier: Address
) -> None:
    options = ServeOptions(proxy_trusted=("127.0.0.1", "unix:"), linger=0.5)
    async with open_server(parse_address(f"{carrier}?proxy={mode}"), options=options) as server:
        payload = os.urandom(100_000)
        with dial(haproxy(server.addresses[0], option)) as sock:
            sock.sendall(payload)
            assert await to_thread.run_sync(receive, sock, len(payload)) == payload
            [peer] = server.peers()
            assert peer.address == sock.getsockname()[:2]
            assert peer.via
            assert (peer.bytes_received, peer.bytes_sent) == (len(payload), len(payload))
            sock.shutdown(socket.SHUT_WR)
            assert await to_thread.run_sync(receive_all, sock) == b""

        await until(lambda: server.stats.closed == {"eof": 1})


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
@pytest.mark.by_turns("anyio_backend")
async def test_an_untrusted_haproxy_is_refused(option: str, haproxy: Starter, carrier: Address) -> None:
    options = ServeOptions(proxy_protocol="require", proxy_trusted=("192.0.2.0/24",), linger=0.5)
    async with open_server(carrier, options=options) as server:
        with dial(haproxy(server.addresses[0], option)) as sock:
            sock.sendall(b"hello")
            assert await to_thread.run_sync(receive_all, sock) == b""

        assert set(server.stats.closed) == {"untrusted"}


@pytest.mark.by_turns("anyio_backend")
async def test_haproxy_without_a_proxy_header_is_refused(haproxy: Starter, carrier: Address) -> None:
    options = ServeOptions(proxy_protocol="require", proxy_trusted=("127.0.0.1", "unix:"), linger=0.5)
    async with open_server(carrier, options=options) as server:
        with dial(haproxy(server.addresses[0], "")) as sock:
            sock.sendall(b"hello")
            assert await to_thread.run_sync(receive_all, sock) == b""

        await until(lambda: server.stats.closed == {"proxy": 1})


@pytest.mark.parametrize("option", ["check send-proxy", "check send-proxy-v2"])
@pytest.mark.by_turns("anyio_backend")
async def test_the_health_checks_of_haproxy_are_no_errors(
    option: str, haproxy: Starter, carrier: Address, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a header, no connection would be accepted: HAProxy sends a RST in place of the last ACK."""
    options = ServeOptions(proxy_protocol="require", proxy_trusted=("127.0.0.1", "unix:"), linger=0.5)
    async with open_server(carrier, options=options) as server:
        haproxy(server.addresses[0], f"{option} inter 50ms")
        await until(lambda: server.stats.closed.total() >= 3)

    # HAProxy resets some of them.
    assert set(server.stats.closed) <= {"eof", "reset"}
    assert caplog.messages == []
