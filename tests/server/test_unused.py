"""Options without effect on the addresses of a server: an error if they protect, else one warning."""

from __future__ import annotations

import logging
import math
import socket
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from anyecho.address import FDAddress, UnixAddress
from anyecho.errors import UsageError
from anyecho.net.sockets import SocketOptions
from anyecho.net.tls.contexts import TLSServerOptions
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.support.certificates import Files

TCP, UDP = "tcp://127.0.0.1:0", "udp://127.0.0.1:0"
TRUST = ("10.0.0.0/8",)


def tls(**changes: Any) -> TLSServerOptions:
    return TLSServerOptions(**({"ssl_certfile": "/absent"} | changes))


@pytest.fixture
def defaults(engine: str) -> ServeOptions:
    """Options with the real default engine, which the `engine` fixture replaces."""
    return ServeOptions(engine="auto")


@pytest.mark.parametrize(
    ("address", "given", "named"),
    [
        (TCP, {"tls": tls()}, ("ssl_certfile",)),
        (TCP, {"tls": tls(ssl_keyfile="/absent")}, ("ssl_certfile", "ssl_keyfile")),
        (TCP, {"tls": TLSServerOptions(ssl_self_signed=True)}, ("ssl_self_signed",)),
        (TCP, {"tls": TLSServerOptions(ssl_alpn=("x",))}, ("ssl_alpn",)),
        (TCP, {"tls": TLSServerOptions(ssl_ca_certs="/x", ssl_cert_reqs="required")}, ("ssl_cert_reqs",)),
        (UDP, {"tls": tls()}, ("ssl_certfile",)),
        (TCP, {"proxy_trusted": TRUST}, ("proxy_trusted",)),
        (UDP, {"proxy_trusted": TRUST}, ("proxy_trusted",)),
        (UDP, {"proxy_trusted": TRUST, "proxy_protocol": "v2"}, ("proxy_protocol",)),
        (f"{TCP}?proxy=off", {"proxy_trusted": TRUST, "proxy_protocol": "v2"}, ("proxy_trusted",)),
    ],
)
@pytest.mark.by_turns("anyio_backend", "engine")
async def test_a_protective_option_without_effect_is_an_error_that_names_it(
    address: str, given: dict[str, Any], named: tuple[str, ...], defaults: ServeOptions
) -> None:
    with pytest.raises(UsageError, match=" no effect: ") as caught:
        async with open_server(address, options=replace(defaults, **given)):
            pytest.fail("it opened")

    assert all(name in str(caught.value) for name in named)
    assert set(named) <= set(caught.value.options)


@pytest.mark.parametrize(
    ("address", "instead"), [(TCP, "tls://127.0.0.1:0"), ("unix:/run/x?mode=660", "tls+unix:/run/x?mode=660")]
)
async def test_the_error_suggests_the_address_over_tls(address: str, instead: str) -> None:
    with pytest.raises(UsageError, match="no address is for TLS: write ") as caught:
        async with open_server(address, UDP, options=ServeOptions(tls=tls())):
            pytest.fail("it opened")

    assert str(caught.value).endswith(f"write {instead}")


async def test_proxy_off_on_each_address_is_the_reason_for_unused_trust() -> None:
    options = ServeOptions(proxy_protocol="v2", proxy_trusted=TRUST)
    with pytest.raises(UsageError, match=r"^proxy_trusted has no effect: .*: each address has \?proxy=off$"):
        async with open_server(f"{TCP}?proxy=off", options=options):
            pytest.fail("it opened")


async def test_a_header_without_trust_is_an_error_that_names_the_address() -> None:
    with pytest.raises(UsageError, match=r"^proxy_trusted is missing: .*proxy=v1 expects a PROXY header"):
        async with open_server(TCP, f"{TCP}?proxy=v1"):
            pytest.fail("it opened")


@pytest.mark.parametrize(
    "given",
    [{"proxy_protocol": "v1"}, {"proxy_timeout": 3.0}, {"max_connections_per_ip": 7}, {"proxy_protocol": "off"}],
)
@pytest.mark.by_turns("anyio_backend", "engine")
async def test_proxy_options_have_effect_if_one_address_expects_a_header(
    given: dict[str, Any], caplog: pytest.LogCaptureFixture, short_path: Path
) -> None:
    options = ServeOptions(proxy_trusted=TRUST, **given)
    async with open_server(f"unix:{short_path}/echo?proxy=v2", TCP, options=options):
        pass

    assert "without effect" not in caplog.text


#: An option with a value, an address on which it has no effect, and one on which it has.
TUNING: list[tuple[dict[str, Any], str, str]] = [
    ({"max_connections": 7}, UDP, TCP),
    ({"over_limit": "close"}, UDP, TCP),
    ({"max_connections_per_ip": 7}, "unix:@{name}", TCP),
    ({"idle_timeout": 7.0}, UDP, TCP),
    ({"write_timeout": 7.0}, UDP, TCP),
    ({"max_duration": 7.0}, UDP, TCP),
    ({"max_bytes": 7}, UDP, TCP),
    ({"min_rate": 7.0}, UDP, TCP),
    ({"min_rate_window": 7.0}, TCP, ""),
    ({"rate_limit": 7.0}, UDP, TCP),
    ({"graceful_timeout": 7.0}, UDP, TCP),
    ({"linger": 7.0}, UDP, TCP),
    ({"backlog": 7}, UDP, TCP),
    ({"proxy_timeout": 7.0}, TCP, ""),
    ({"handshake_timeout": 7.0}, TCP, ""),
    ({"engine": "tasks"}, UDP, TCP),
    ({"seed": 7}, "", TCP),
    ({"udp_rate": 7.0}, TCP, UDP),
    ({"udp_burst": 7}, TCP, UDP),
    ({"unsafe_udp": True}, TCP, UDP),
    ({"socket": SocketOptions(tcp_nodelay=False)}, "unix:@{name}", TCP),
    ({"socket": SocketOptions(tcp_notsent_lowat=0)}, UDP, TCP),
    ({"socket": SocketOptions(tcp_user_timeout=7)}, UDP, TCP),
    ({"socket": SocketOptions(keepalive=False)}, UDP, TCP),
    ({"socket": SocketOptions(sndbuf=70_000)}, "", UDP),
    ({"socket": SocketOptions(rcvbuf=70_000)}, "", UDP),
]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "without effect" in record.getMessage()]


@pytest.mark.parametrize(("given", "where_not", "where"), TUNING)
@pytest.mark.by_turns("anyio_backend", "engine")
async def test_a_tuning_option_without_effect_is_one_warning(
    given: dict[str, Any], where_not: str, where: str, caplog: pytest.LogCaptureFixture, defaults: ServeOptions
) -> None:
    options = replace(defaults, **given)
    for address in filter(None, (where_not, where)):
        name = f"anyecho-unused-{id(caplog)}"
        async with open_server(address.format(name=name), options=options):
            pass

    assert len(warnings_in(caplog)) == bool(where_not)


def test_every_option_is_covered_here() -> None:
    flat = {each.name for each in fields(SocketOptions)}
    for each in fields(ServeOptions):
        if not is_dataclass(getattr(ServeOptions(), each.name)):
            flat.add(each.name)
    tried = {name for given, _, _ in TUNING for name in given} | {each.name for each in fields(SocketOptions)}

    internal = {"from_environment", "processes", "shared_row"}
    assert flat - tried - {"socket"} - internal == {"proxy_protocol", "proxy_trusted", "faults"}


async def test_several_options_without_effect_are_one_warning(
    caplog: pytest.LogCaptureFixture, defaults: ServeOptions
) -> None:
    options = replace(defaults, udp_rate=7, unsafe_udp=True, handshake_timeout=3, min_rate_window=3)
    async with open_server(TCP, options=options):
        pass

    [record] = warnings_in(caplog)
    assert record.getMessage() == (
        "without effect: min_rate_window (min_rate is off), handshake_timeout (no address is for TLS), "
        "udp_rate, unsafe_udp (no address is for UDP)"
    )


async def test_defaults_and_options_with_effect_are_not_mentioned(
    caplog: pytest.LogCaptureFixture, files: Files, defaults: ServeOptions
) -> None:
    own = TLSServerOptions(ssl_certfile=files.cert, ssl_keyfile=files.key)
    options = replace(defaults, tls=own, handshake_timeout=3, min_rate=1.0, min_rate_window=3, udp_burst=3)
    async with open_server("tls://127.0.0.1:0", TCP, UDP, options=options), open_server(UDP, options=defaults):
        pass

    assert not warnings_in(caplog)


async def test_a_udp_burst_without_a_rate_has_no_effect(
    caplog: pytest.LogCaptureFixture, defaults: ServeOptions
) -> None:
    async with open_server(UDP, options=replace(defaults, udp_rate=math.inf, udp_burst=3)):
        pass

    assert warnings_in(caplog)[0].getMessage() == "without effect: udp_burst (udp_rate is off)"


async def test_a_protective_option_from_the_environment_is_a_warning(
    caplog: pytest.LogCaptureFixture, defaults: ServeOptions
) -> None:
    options = replace(defaults, tls=tls(), proxy_trusted=TRUST, from_environment=("ssl_certfile", "proxy_trusted"))
    async with open_server(TCP, options=options):
        pass

    [record] = warnings_in(caplog)
    assert "proxy_trusted" in record.getMessage()
    assert "ssl_certfile (no address is for TLS: write tls://127.0.0.1:0)" in record.getMessage()


async def test_options_of_a_passed_socket_are_checked_by_its_type(
    caplog: pytest.LogCaptureFixture, defaults: ServeOptions
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        address = FDAddress(fd=sock.fileno())
        async with open_server(address, options=replace(defaults, udp_rate=7)):
            assert not warnings_in(caplog)
        async with open_server(address, options=replace(defaults, idle_timeout=7)):
            assert warnings_in(caplog)[0].getMessage() == "without effect: idle_timeout (every address is for UDP)"


async def test_an_error_about_options_leaves_nothing_bound(short_path: Path, defaults: ServeOptions) -> None:
    path = short_path / "echo"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Whether the descriptor is for streams is known only when the path is bound.
        addresses = (UnixAddress(path=str(path)), FDAddress(fd=listener.fileno()))
        with pytest.raises(UsageError, match="ssl_certfile has no effect"):
            async with open_server(*addresses, options=replace(defaults, tls=tls())):
                pytest.fail("it opened")
        with pytest.raises(UsageError, match=r"no address is for TLS: write tls\+fd://"):
            async with open_server(addresses[1], options=replace(defaults, tls=tls())):
                pytest.fail("it opened")

    assert not path.exists()
