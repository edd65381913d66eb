"""Options with a value of a wrong type or an unknown choice: one line that shows the value."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from anyecho.address import FDAddress, TCPAddress, UDPAddress, UnixAddress, parse_address
from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.errors import AddressError, UsageError, quoted
from anyecho.measure.bench import run_bench
from anyecho.measure.options import BenchOptions
from anyecho.net.sockets import SocketOptions
from anyecho.net.tls.contexts import TLSClientOptions, TLSServerOptions
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from anyecho.validation import given_options


def test_a_value_too_deep_to_be_printed_is_quoted_by_its_type() -> None:
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    assert quoted(deep) == "a deeply nested list"


@pytest.mark.parametrize(
    ("options", "wrong", "line"),
    [
        (ServeOptions, {"engine": "foo"}, "engine must be auto, tasks or events, not 'foo'"),
        (ServeOptions, {"engine": None}, "engine must be auto, tasks or events, not None"),
        (ServeOptions, {"over_limit": "drop"}, "over_limit must be wait or close, not 'drop'"),
        (ServeOptions, {"proxy_protocol": "v3"}, "proxy_protocol must be off, v1, v2 or require, not 'v3'"),
        (ServeOptions, {"idle_timeout": "5m"}, "idle_timeout must be float (seconds) or None, not '5m'"),
        (ServeOptions, {"idle_timeout": math.nan}, "idle_timeout must be float (seconds) or None, not nan"),
        (ServeOptions, {"linger": True}, "linger must be float (seconds) or None, not True"),
        (ServeOptions, {"max_bytes": 1.5}, "max_bytes must be int (bytes) or None, not 1.5"),
        (ServeOptions, {"min_rate": "1k"}, "min_rate must be float (per second) or None, not '1k'"),
        (
            ServeOptions,
            {"min_rate": -1.0},
            "min_rate must be more than 0, not -1.0 (no limit: off,",
        ),
        (ServeOptions, {"max_bytes": False}, "max_bytes must be int (bytes) or None, not False"),
        (ServeOptions, {"max_connections": 10.0}, "max_connections must be int, not 10.0"),
        (ServeOptions, {"unsafe_udp": 1}, "unsafe_udp must be bool, not 1"),
        (ServeOptions, {"proxy_trusted": "unix:"}, "proxy_trusted must be a tuple of str, not 'unix:'"),
        (ServeOptions, {"proxy_trusted": (7,)}, "proxy_trusted must be a tuple of str, not (7,)"),
        (ServeOptions, {"tls": TLSClientOptions()}, "tls must be TLSServerOptions, not TLSClientOptions("),
        (ServeOptions, {"socket": None}, "socket must be SocketOptions, not None"),
        (SocketOptions, {"tcp_nodelay": "no"}, "tcp_nodelay must be bool, not 'no'"),
        (SocketOptions, {"sndbuf": "64k"}, "sndbuf must be int (bytes) or None, not '64k'"),
        (TLSServerOptions, {"ssl_certfile": 3}, "ssl_certfile must be str, os.PathLike or None, not 3"),
        (TLSServerOptions, {"ssl_alpn": "h2"}, "ssl_alpn must be a tuple of str, not 'h2'"),
        (TLSServerOptions, {"ssl_cert_reqs": "x"}, "ssl_cert_reqs must be none, optional or required, not 'x'"),
        (TLSServerOptions, {"context": "c.pem"}, "context must be SSLContext or None, not 'c.pem'"),
        (TLSClientOptions, {"insecure": "yes"}, "insecure must be bool, not 'yes'"),
        (TLSClientOptions, {"sni": b"x"}, "sni must be str or None, not b'x'"),
        (ConnectOptions, {"proxy_header": "v3"}, "proxy_header must be off, v1 or v2, not 'v3'"),
        (ConnectOptions, {"family": 5}, "family must be 4, 6 or None, not 5"),
        (ConnectOptions, {"family": "4"}, "family must be 4, 6 or None, not '4'"),
        (ConnectOptions, {"timeout": "10"}, "timeout must be float (seconds) or None, not '10'"),
        (BenchOptions, {"connections": "many"}, "connections must be int, not 'many'"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_option_and_value(
    options: type, wrong: dict[str, Any], line: str
) -> None:
    with pytest.raises(UsageError) as caught:
        options(**wrong)

    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
    assert caught.value.options == tuple(wrong)


@pytest.mark.parametrize(
    ("address", "wrong"),
    [
        (TCPAddress, {"host": "localhost", "port": "7000"}),
        (TCPAddress, {"host": "localhost", "port": 7000, "proxy": "v3"}),
        (TCPAddress, {"host": "localhost", "port": 7000, "tls": "yes"}),
        (UDPAddress, {"host": None, "port": 7000}),
        (UnixAddress, {"path": Path("/run/echo")}),
        (UnixAddress, {"path": "/run/echo", "mode": "660"}),
        (FDAddress, {"fd": True}),
        (FDAddress, {"fd": 3.0}),
    ],
)
def test_a_wrong_value_in_an_address_is_refused(address: type, wrong: dict[str, Any]) -> None:
    with pytest.raises(AddressError, match=f"{list(wrong)[-1]}|host must be"):
        address(**wrong)


@pytest.mark.parametrize("value", [7000, None, b"tcp://localhost:1", ("localhost", 7000), Path("/run/echo")])
def test_an_address_of_a_wrong_type_is_refused(value: Any) -> None:
    with pytest.raises(AddressError, match="an address is a str or an Address, not "):
        parse_address(value)


def test_parse_address_returns_an_address_unchanged() -> None:
    address = TCPAddress(host="localhost", port=7)

    assert parse_address(address) is address


class Engine(StrEnum):
    EVENTS = "events"


def test_compatible_types_are_accepted() -> None:
    assert ServeOptions(idle_timeout=5).idle_timeout == 5
    engine: Any = Engine.EVENTS
    assert ServeOptions(engine=engine).engine == "events"
    given: Any = ["unix:", "10.0.0.0/8"]
    assert ServeOptions(proxy_trusted=given).proxy_trusted == ("unix:", "10.0.0.0/8")


@pytest.mark.parametrize("wrong", [ConnectOptions(), {}, {"engine": "tasks"}, "tasks"])
async def test_options_of_another_class_are_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"^options must be ServeOptions, not "):
        async with open_server("tcp://127.0.0.1:0", options=wrong):
            pytest.fail("it opened")
    with pytest.raises(UsageError, match=r"^options must be BenchOptions, not "):
        await run_bench("tcp://127.0.0.1:1", wrong)
    with pytest.raises(UsageError, match=r"^options must be ConnectOptions, not "):
        given: Any = ServeOptions() if wrong == ConnectOptions() else wrong
        await connect("tcp://127.0.0.1:1", options=given)


def test_given_options_are_those_that_differ_from_their_defaults() -> None:
    assert list(given_options(ServeOptions())) == []
    nested = ServeOptions(linger=1, idle_timeout=600, socket=SocketOptions(sndbuf=7, rcvbuf=0))
    assert list(given_options(nested)) == ["linger", "sndbuf"]
