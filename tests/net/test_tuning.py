"""Socket options that the kernel refuses are left out, and one line of the log names them."""

from __future__ import annotations

import errno
import logging
import os
import socket
from typing import Any

import pytest
from anyio import to_thread

from anyecho.address import Address, UDPAddress
from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.net.sockets import SocketOptions
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.support.datagrams import udp_client

REFUSALS = ("ENOPROTOOPT", "EOPNOTSUPP", "ENOTSUP", "EINVAL", "EPERM", "EACCES", "ENOSYS", "ENOBUFS")
#: Options that decide which peers reach which socket. A refusal of these is an error.
NOT_TUNING = {(socket.SOL_SOCKET, socket.SO_REUSEADDR), (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)}
#: Sets every option.
ALL = SocketOptions(sndbuf=100_000, rcvbuf=100_000)


def refuse(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Make setsockopt(2) fail with `code` for all options but `NOT_TUNING`."""

    def refusing(sock: socket.socket, level: int, option: int, *value: Any) -> None:
        if (level, option) not in NOT_TUNING:
            raise OSError(code, os.strerror(code))
        set_option(sock, level, option, *value)

    set_option: Any = socket.socket.setsockopt
    monkeypatch.setattr(socket.socket, "setsockopt", refusing)


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.by_turns("anyio_backend")
async def test_server_and_client_work_without_refused_options(
    name: str, carrier: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, getattr(errno, name))
    options = ConnectOptions(socket=ALL)
    async with (
        open_server(carrier, options=ServeOptions(socket=ALL)) as server,
        await connect(server.addresses[0], options=options) as client,
    ):
        assert await client.exchange(b"hello") == b"hello"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_datagrams_are_echoed_without_refused_options(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.ENOPROTOOPT)
    async with open_server(UDPAddress(host=host, port=0)) as server:
        [bound] = server.addresses
        assert isinstance(bound, UDPAddress)
        address = UDPAddress(host="127.0.0.1", port=bound.port)
        with udp_client(address) as sock:
            sock.send(b"hello")
            assert await to_thread.run_sync(sock.recv, 100) == b"hello"

        async with await connect(address) as client:
            assert await client.exchange(b"hello") == b"hello"


@pytest.mark.parametrize(
    ("options", "level"), [(SocketOptions(), logging.INFO), (SocketOptions(sndbuf=9000), logging.WARNING)]
)
def test_refused_options_are_named_in_one_line(
    options: SocketOptions, level: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(monkeypatch, errno.ENOPROTOOPT)
    with caplog.at_level(logging.INFO, "anyecho"), socket.socket() as sock:
        options.apply(sock)

    [record] = caplog.records
    assert record.levelno == level
    assert record.getMessage().startswith("left out socket options that the kernel refuses (AF_INET, protocol 0): ")
    assert "SO_OOBINLINE" in record.getMessage()
    assert "TCP_USER_TIMEOUT" in record.getMessage()


def test_a_closed_socket_is_an_error_not_a_refusal() -> None:
    sock = socket.socket()
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        SocketOptions().apply(sock)
