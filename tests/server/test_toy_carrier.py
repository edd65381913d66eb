"""The recipe "A carrier" of CONTRIBUTING.md: a toy carrier that names loopback ports, ``toy:name``.

An address type with its prefix, and two registrations: how to listen, and where to connect.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from anyecho.address import PREFIXES, StreamAddress, parse_address
from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.errors import AddressError, BindError, ConnectError, UsageError
from anyecho.net import connect as connecting
from anyecho.net import listen as listening
from anyecho.net.listen import Listener
from anyecho.net.resolve import Endpoint, IPVersion
from anyecho.net.sockets import SocketOptions
from anyecho.net.tls.contexts import TLSClientOptions, TLSServerOptions
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.support.certificates import Files

PAYLOAD = os.urandom(100_000)


@dataclass(frozen=True, kw_only=True)
class ToyAddress(StreamAddress):
    name: str

    def __str__(self) -> str:
        return f"{'tls+' if self.tls else ''}toy:{self.name}"


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    ports: dict[str, int] = {}

    async def listen(address: ToyAddress, backlog: int, options: SocketOptions) -> list[Listener]:
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        options.apply(sock)
        if address.name in ports:
            sock.close()
            raise OSError(None, "it has a port already")

        ports[address.name] = sock.getsockname()[1]
        return [Listener(sock, address, address)]

    async def find(address: ToyAddress, family: IPVersion | None) -> Sequence[Endpoint]:
        if address.name not in ports:
            raise OSError(None, "it has no port")

        return [(socket.AF_INET, ("127.0.0.1", ports[address.name]))]

    monkeypatch.setitem(PREFIXES, "toy:", lambda text, settings: ToyAddress(name=text))
    monkeypatch.setitem(PREFIXES, "tls+toy:", lambda text, settings: ToyAddress(name=text, tls=True))
    monkeypatch.setitem(listening.CARRIERS, ToyAddress, listen)
    monkeypatch.setitem(connecting.CARRIERS, ToyAddress, find)


async def test_a_toy_carrier_echoes() -> None:
    async with open_server("toy:kitchen") as server:
        assert server.address == ToyAddress(name="kitchen")
        async with await connect("toy:kitchen") as client:
            assert await client.exchange(PAYLOAD) == PAYLOAD
            async with client.send([PAYLOAD, b"end"]) as echo:
                assert b"".join([chunk async for chunk in echo]) == PAYLOAD + b"end"

    assert server.stats.bytes_sent == 2 * len(PAYLOAD) + 3


async def test_a_toy_carrier_echoes_over_tls(files: Files) -> None:
    serving = ServeOptions(tls=TLSServerOptions(ssl_certfile=files.cert, ssl_keyfile=files.key))
    options = ConnectOptions(tls=TLSClientOptions(cacert=files.cacert))
    async with (
        open_server("tls+toy:kitchen", options=serving),
        await connect("tls+toy:kitchen", options=options) as client,
    ):
        assert await client.exchange(PAYLOAD) == PAYLOAD


async def test_a_toy_carrier_expects_a_proxy_header() -> None:
    options = ServeOptions(proxy_trusted=("127.0.0.1",))
    async with (
        open_server(ToyAddress(name="kitchen", proxy="v2"), options=options),
        await connect("toy:kitchen", options=ConnectOptions(proxy_header="v2")) as client,
    ):
        assert await client.exchange(PAYLOAD) == PAYLOAD


async def test_errors_of_a_toy_carrier_name_its_address() -> None:
    with pytest.raises(ConnectError, match=r"^cannot connect to toy:attic: it has no port$"):
        await connect("toy:attic")
    with pytest.raises(BindError, match=r"^cannot listen on toy:attic: it has a port already$"):
        async with open_server("toy:attic", "toy:attic"):
            pytest.fail("it was opened twice")


async def test_options_without_effect_on_a_toy_carrier_are_errors() -> None:
    with pytest.raises(UsageError, match=r"tls\+toy:kitchen"):
        await connect("toy:kitchen", options=ConnectOptions(tls=TLSClientOptions(insecure=True)))


@pytest.mark.by_turns
def test_the_prefix_of_a_toy_carrier_is_parsed_and_listed() -> None:
    address = parse_address("TOY:kitchen")
    assert address == ToyAddress(name="kitchen")
    assert str(replace(address, tls=True)) == "tls+toy:kitchen"
    with pytest.raises(AddressError, match=r"there are tcp, .* and tls\+toy$"):
        parse_address("http://kitchen")
    with pytest.raises(AddressError, match=r"no setting 'size' here \(known: proxy\)"):
        parse_address("toy:kitchen?size=1")
