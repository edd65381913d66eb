"""Host names, keys of sources, choice of failures: stuck look-ups block nothing, NAT64 counts by IPv4 address."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from threading import Event
from typing import Any
from unittest.mock import Mock

import pytest
from anyio import create_task_group, fail_after, move_on_after, to_thread

import anyecho
from anyecho.address import TCPAddress, UDPAddress
from anyecho.client.options import ConnectOptions
from anyecho.errors import BindError, ConnectError
from anyecho.net.names import address_of, source_key, unmapped
from anyecho.net.resolve import IPVersion, look_up_limiter, most_telling, resolve
from anyecho.net.threads import run_in_thread
from tests.support.tasks import wait_all_tasks_blocked


@pytest.fixture
def dead_name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Look-ups of ``*.dead`` do not return until the test ends."""
    getaddrinfo, ended = socket.getaddrinfo, Event()

    def hang(host: str, *args: Any, **options: Any) -> Any:
        if host.endswith(".dead") and not options:
            ended.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return getaddrinfo("127.0.0.1" if host == "alive" and not options else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    yield
    ended.set()


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("[fe80::1]", r"fe80::1 is link-local: write its interface too, like \[fe80::1%25eth0\]"),
        ("a..b", "a part of it between dots is empty or longer than 63 bytes"),
        ("a" * 64, "a part of it between dots is empty or longer than 63 bytes"),
        ("\u00e4" * 60, "a part of it between dots is empty or longer than 63 bytes"),
    ],
    ids=["link-local", "empty label", "long label", "long international label"],
)
async def test_a_host_that_cannot_be_looked_up_is_explained(scheme: str, host: str, reason: str) -> None:
    line = rf"^cannot (connect to|listen on) {scheme}://.*:1: no such host \({reason}\)$"
    with pytest.raises(ConnectError, match=line):
        await anyecho.connect(f"{scheme}://{host}:1")
    with pytest.raises(BindError, match=line):
        await anyecho.serve(f"{scheme}://{host}:1")


async def test_stuck_look_ups_block_neither_other_threads_nor_other_look_ups(dead_name_server: None) -> None:
    """anyio's default limiter has 40 tokens, which abandoned threads keep on trio."""

    async def give_up(host: str) -> None:
        with move_on_after(0.2):
            await resolve(host, 1)

    async with create_task_group() as tasks:
        for number in range(45):
            tasks.start_soon(give_up, f"{number}.dead")

    with fail_after(10):
        assert await to_thread.run_sync(os.getpid) == os.getpid()
        assert await resolve("alive", 1) == [(socket.AF_INET, ("127.0.0.1", 1))]


async def test_all_look_ups_of_an_event_loop_share_one_limit() -> None:
    assert look_up_limiter() is look_up_limiter()


async def test_a_runtime_error_of_a_call_in_a_thread_is_raised_unchanged() -> None:
    """A thread that cannot be started is a RuntimeError too."""
    error = RuntimeError("a bug")
    with pytest.raises(RuntimeError) as caught:
        await run_in_thread(Mock(side_effect=error))
    assert caught.value is error


async def test_a_look_up_that_gets_no_thread_obeys_its_timeout(
    dead_name_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_up_limiter(), "total_tokens", 1)
    options = ConnectOptions(timeout=0.2)
    with fail_after(10):
        async with create_task_group() as tasks:
            tasks.start_soon(resolve, "first.dead", 1)
            await wait_all_tasks_blocked()
            for address in ("tcp://second.dead:1", "udp://second.dead:1"):
                with pytest.raises(ConnectError, match=r"no answer within 200ms$"):
                    await anyecho.connect(address, options=options)
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:c000:201", "192.0.2.1"),
        ("::ffff:192.0.2.1%lo", "192.0.2.1"),
        ("::ffff:0:192.0.2.1", "::ffff:0:192.0.2.1"),
        ("64:ff9b::192.0.2.1", "64:ff9b::192.0.2.1"),
        ("::1", "::1"),
        ("192.0.2.1", "192.0.2.1"),
        ("ffff.test", "ffff.test"),
    ],
)
def test_only_a_mapped_address_is_ipv4(host: str, address: str) -> None:
    assert unmapped(host) == address


@pytest.mark.parametrize("version", [None, 4])
async def test_a_name_of_a_mapped_address_is_ipv4(
    version: IPVersion | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(*_: Any, flags: int = 0) -> list[Any]:
        if flags:
            raise socket.gaierror(socket.EAI_NONAME, "not numeric")
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::ffff:192.0.2.1", 7, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 7)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert await resolve("mapped.test", 7, version=version) == [(socket.AF_INET, ("192.0.2.1", 7))]
    with pytest.raises(socket.gaierror, match="no address of this family"):
        await resolve("mapped.test", 7, version=6)


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("64:ff9b::192.0.2.1", "192.0.2.1"),
        ("64:ff9b::c000:201", "192.0.2.1"),
        ("64:ff9b:0:0:0:1:c000:201", bytes.fromhex("0064ff9b00000000")),
        ("64:ff9b:1::c000:201", bytes.fromhex("0064ff9b0001000000000000c0000201")),
        ("64:ff9b:1:c000:2:100::", bytes.fromhex("0064ff9b0001c0000002010000000000")),
        ("64:ff9b:2::c000:201", bytes.fromhex("0064ff9b00020000")),
        ("2001:db8::ff:1", bytes.fromhex("20010db800000000")),
        ("fe80::1%eth0", bytes.fromhex("fe80000000000000")),
        ("::1", bytes(8)),
    ],
)
def test_a_limit_counts_an_ipv4_address_or_an_ipv6_64(host: str, key: str | bytes) -> None:
    assert source_key(host) == key


def failures(*codes: int) -> list[OSError]:
    return [OSError(code, os.strerror(code)) for code in codes]


@pytest.mark.parametrize(
    ("codes", "reported"),
    [
        ([errno.EADDRNOTAVAIL, errno.ECONNREFUSED], errno.ECONNREFUSED),
        ([errno.ECONNREFUSED, errno.ENETUNREACH], errno.ECONNREFUSED),
        ([errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES], errno.EACCES),
        ([errno.EAFNOSUPPORT, errno.ETIMEDOUT, errno.ENETUNREACH], errno.ETIMEDOUT),
        ([errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET], errno.ECONNREFUSED),
        ([errno.ENETUNREACH, errno.EADDRNOTAVAIL], errno.ENETUNREACH),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else "",
)
def test_the_failure_that_says_most_about_the_peer_is_reported(codes: list[int], reported: int) -> None:
    assert most_telling(failures(*codes)).errno == reported


@pytest.mark.parametrize(("kind", "address"), [(socket.SOCK_STREAM, TCPAddress), (socket.SOCK_DGRAM, UDPAddress)])
@pytest.mark.parametrize("host", ["fe80::1", "fe80::1%{name}"])
def test_a_link_local_address_has_its_interface(
    host: str, kind: int, address: type[TCPAddress] | type[UDPAddress]
) -> None:
    """getsockname(2) has the number of the interface, and some systems write its name too."""
    number, name = socket.if_nameindex()[0]
    sock = Mock(family=socket.AF_INET6, type=kind)
    sock.getsockname.return_value = (host.format(name=name), 7, 0, number)
    assert address_of(sock) == address(host=f"fe80::1%{name}", port=7)
