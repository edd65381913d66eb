"""Out-of-band bytes (MSG_OOB) are echoed in their place, on TCP and on Unix sockets."""

from __future__ import annotations

import socket

import pytest
from anyio import create_task_group, fail_after, to_thread

from anyecho.address import Address, UnixAddress
from anyecho.client.client import connect
from anyecho.net.listen import open_listeners
from anyecho.net.sockets import SocketOptions
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.support.machine import skip
from tests.support.peers import SOON, dial, receive_all

#: Parts to send; those in brackets are sent out of band.
SCRIPTS = (
    ("a", "[!]", "b"),
    ("[!]",),
    ("a", "[!]"),
    ("[!]", "b"),
    ("a", "[!]", "[?]", "b"),
    ("before", "[urgent]", "after", "[!]"),
)


@pytest.fixture(autouse=True)
def unix_has_out_of_band_bytes(request: pytest.FixtureRequest) -> None:
    if isinstance(request.getfixturevalue("carrier"), UnixAddress):
        left, right = socket.socketpair()
        with left, right:
            try:
                left.send(b"!", socket.MSG_OOB)
            except OSError as exc:
                skip(f"out-of-band bytes on Unix sockets ({exc})")


def send_script(sock: socket.socket, script: tuple[str, ...]) -> bytes:
    """Send the parts of `script`; return all bytes sent."""
    for part in script:
        sock.send(part.strip("[]").encode(), socket.MSG_OOB if part.startswith("[") else 0)

    return "".join(part.strip("[]") for part in script).encode()


@pytest.mark.parametrize("script", SCRIPTS, ids="".join)
@pytest.mark.by_turns("anyio_backend")
async def test_an_out_of_band_byte_is_echoed_in_its_place(script: tuple[str, ...], server: Server) -> None:
    def talk() -> tuple[bytes, bytes]:
        with dial(server.addresses[0]) as sock:
            sent = send_script(sock, script)
            sock.shutdown(socket.SHUT_WR)
            return sent, receive_all(sock)

    with fail_after(SOON):
        sent, received = await to_thread.run_sync(talk)

    assert received == sent
    assert server.stats.bytes_received == len(sent)


async def test_an_out_of_band_byte_that_comes_alone_is_echoed_at_once(server: Server) -> None:
    def talk() -> bytes:
        with dial(server.addresses[0]) as sock:
            for byte in (b"1", b"2", b"3"):
                sock.send(byte, socket.MSG_OOB)
                assert sock.recv(10) == byte
            sock.send(b"end")
            return sock.recv(10)

    with fail_after(SOON):
        assert await to_thread.run_sync(talk) == b"end"


async def test_a_limit_of_bytes_counts_out_of_band_bytes(carrier: Address) -> None:
    options = ServeOptions(linger=0.5, max_bytes=6)
    async with open_server(carrier, options=options) as server:

        def talk() -> bytes:
            with dial(server.addresses[0]) as sock:
                send_script(sock, ("ab", "[!]", "cd", "[?]"))
                sock.shutdown(socket.SHUT_WR)
                return receive_all(sock)

        with fail_after(SOON):
            assert await to_thread.run_sync(talk) == b"ab!cd?"


async def test_an_out_of_band_byte_in_a_proxy_header_is_part_of_it(carrier: Address) -> None:
    options = ServeOptions(proxy_protocol="v1", proxy_trusted=("127.0.0.1", "unix:"))
    async with open_server(carrier, options=options) as server:

        def talk() -> bytes:
            with dial(server.addresses[0]) as sock:
                send_script(sock, ("PROXY TCP4 192.0.2.1 ", "[1]", "92.0.2.2 1000 2000\r\n", "a", "[!]", "b"))
                sock.shutdown(socket.SHUT_WR)
                return receive_all(sock)

        with fail_after(SOON):
            assert await to_thread.run_sync(talk) == b"a!b"


async def test_the_client_takes_an_echo_with_an_out_of_band_byte(carrier: Address) -> None:
    """A relay may send any byte of an echo out of band."""

    def relay(listener: socket.socket) -> None:
        listener.settimeout(SOON)
        with listener.accept()[0] as sock:
            sock.settimeout(SOON)
            assert sock.recv(100) == b"a!b"
            send_script(sock, ("a", "[!]", "b"))
            sock.recv(100)

    [bound] = await open_listeners([carrier], backlog=1, options=SocketOptions())
    with bound.sock as listener:
        async with create_task_group() as tasks:
            tasks.start_soon(to_thread.run_sync, relay, listener)
            async with await connect(bound.address) as client:
                with fail_after(SOON):
                    assert await client.exchange(b"a!b") == b"a!b"
