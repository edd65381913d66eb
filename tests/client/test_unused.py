"""Client options without effect on the address: protective ones are an error, others are logged in one line."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from anyecho.address import Address, UnixAddress
from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.errors import ConnectError, UsageError
from anyecho.measure.bench import run_bench
from anyecho.measure.options import BenchOptions
from anyecho.net.sockets import SocketOptions
from anyecho.net.tls.contexts import TLSClientOptions
from anyecho.server.server import Server

#: Addresses without a listener, so that no byte is sent.
TCP, TLS, UDP = "tcp://127.0.0.1:1", "tls://127.0.0.1:1", "udp://127.0.0.1:1"


@pytest.mark.parametrize("address", [TCP, UDP, "unix:/absent"])
@pytest.mark.parametrize(
    "given", [{"cacert": "/absent"}, {"cert": "/absent"}, {"sni": "x"}, {"alpn": ("x",)}, {"insecure": True}]
)
@pytest.mark.by_turns("anyio_backend")
async def test_tls_options_on_an_address_without_tls_are_an_error(address: str, given: dict[str, Any]) -> None:
    [name] = given
    with pytest.raises(UsageError, match=f"^{name} has no effect: {address} ") as caught:
        await connect(address, options=ConnectOptions(tls=TLSClientOptions(**given)))

    assert caught.value.options[0] == name
    instead = {TCP: "write tls://127.0.0.1:1", UDP: "has no TLS", "unix:/absent": "write tls+unix:/absent"}
    assert str(caught.value).endswith(instead[address])


async def test_cacert_with_insecure_is_an_error() -> None:
    options = ConnectOptions(tls=TLSClientOptions(cacert="/absent", insecure=True))
    with pytest.raises(UsageError, match=r"^cacert has no effect: insecure accepts any certificate"):
        await connect(TLS, options=options)


async def test_proxy_header_over_udp_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"^proxy_header has no effect"):
        await connect(UDP, options=ConnectOptions(proxy_header="v2"))


async def test_connecting_to_a_descriptor_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"^cannot connect to fd://3: a descriptor is for servers"):
        await connect("fd://3")


async def test_a_protective_option_from_the_environment_is_only_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    options = ConnectOptions(tls=TLSClientOptions(cacert="/absent"), from_environment=("cacert",))
    with pytest.raises(ConnectError, match="Connection refused"):
        await connect(TCP, options=options)

    assert "without effect: cacert (tcp://127.0.0.1:1 is not over TLS" in caplog.text


TUNING = ConnectOptions(family=4, socket=SocketOptions(keepalive=False, tcp_user_timeout=7, sndbuf=70_000))


async def test_tuning_options_without_effect_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConnectError):
        await connect("unix:/absent", options=TUNING)

    [record] = caplog.records
    why = "unix:/absent is not TCP"
    assert record.getMessage() == (
        f"without effect: family (unix:/absent has no IP address), tcp_user_timeout, keepalive ({why})"
    )


@pytest.mark.parametrize(("header", "warnings"), [("off", 1), ("v2", 0)])
async def test_a_proxy_setting_in_a_client_address_is_a_warning_without_proxy_header(
    header: Literal["off", "v2"], warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConnectError):
        await connect(f"{TCP}?proxy=v2", options=ConnectOptions(proxy_header=header))

    line = "without effect: ?proxy= (it is for servers: a client sends a header with proxy_header)"
    assert [record.getMessage() for record in caplog.records] == [line] * warnings


async def test_options_with_an_effect_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    for address in (TCP, TLS):
        tls = TLSClientOptions(insecure=True, sni="x") if address == TLS else TLSClientOptions()
        with pytest.raises(ConnectError):
            await connect(
                address, options=ConnectOptions(family=4, socket=TUNING.socket, proxy_header="v1", tls=tls)
            )

    assert not caplog.records


async def test_a_load_warns_once_and_not_for_each_connection(
    server: Server, carrier: Address, caplog: pytest.LogCaptureFixture
) -> None:
    options = BenchOptions(connections=5, requests=5, warmup=0.0, connect=TUNING)
    await run_bench(server.addresses[0], options)

    assert caplog.text.count("without effect") == isinstance(carrier, UnixAddress)
