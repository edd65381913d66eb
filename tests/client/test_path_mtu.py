"""Datagrams above the path MTU: EMSGSIZE is about a datagram sent before, and only that one is lost."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
import sys
from typing import Any

import pytest

from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.errors import EchoLost, UsageError
from anyecho.net.poller import Fallback, Poller
from anyecho.server.server import open_server
from tests.client.path_mtu import NO_LINKS
from tests.support.datagrams import polled_client
from tests.support.machine import needs_ipv6, network_namespace, skip

MESSAGES = [letter * 1400 for letter in "abcd"]


def fail_with_emsgsize(monkeypatch: pytest.MonkeyPatch, method: str, count: int) -> None:
    """Let `count` calls of `method` on a datagram socket fail with EMSGSIZE."""

    def failing(sock: socket.socket, *arguments: Any) -> Any:
        nonlocal count
        if count and sock.type == socket.SOCK_DGRAM:
            count -= 1
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        return call(sock, *arguments)

    call: Any = getattr(socket.socket, method)
    monkeypatch.setattr(socket.socket, method, failing)


@pytest.mark.parametrize("method", ["recv", "send"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("polled", [False, True])
async def test_emsgsize_for_an_earlier_datagram_loses_no_later_one(
    method: str, count: int, polled: bool, poller: Poller | Fallback, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        open_server("udp://127.0.0.1:0") as server,
        await polled_client(server.addresses[0], poller if polled else None) as client,
    ):
        fail_with_emsgsize(monkeypatch, method, count)
        for payload in (b"first", b"", bytes(65507)):
            assert await client.exchange(payload) == payload


async def test_a_datagram_that_the_kernel_never_accepts_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ConnectOptions(timeout=0.2)
    async with (
        open_server("udp://127.0.0.1:0") as server,
        await connect(server.addresses[0], options=options) as client,
    ):
        fail_with_emsgsize(monkeypatch, "send", 1_000_000)
        with pytest.raises(EchoLost, match=r"^1 of 1 datagrams were lost"):
            await client.exchange(b"x" * 1400)


@pytest.mark.parametrize(("host", "least"), [("127.0.0.1", 65508), pytest.param("[::1]", 65528, marks=needs_ipv6)])
async def test_a_datagram_above_the_size_limit_is_a_usage_error(host: str, least: int) -> None:
    async with open_server(f"udp://{host}:0") as server:
        async with await connect(server.addresses[0]) as client:
            assert await client.exchange(bytes(least - 1)) == bytes(least - 1)
        async with await connect(server.addresses[0]) as client:
            with pytest.raises(UsageError, match=f"^a message of {least} bytes is too large for a datagram"):
                await client.exchange(bytes(least))


@pytest.mark.parametrize("family", ["4", "6"])
@pytest.mark.by_turns("family")
def test_datagrams_above_the_path_mtu_are_lost_until_the_mtu_is_known(family: str, backend: str) -> None:
    command = [*network_namespace("link set lo up"), sys.executable, "-m", "tests.client.path_mtu", family]
    options = ["--timeout", "1s", "--backend", backend]
    ended = subprocess.run([*command, *options, *MESSAGES], capture_output=True, text=True, timeout=50, check=False)
    if ended.returncode == NO_LINKS:
        skip("the right to link network namespaces")

    status, output, errors = json.loads(ended.stdout)
    assert status == 1
    assert re.fullmatch(r"anyecho: [1-4] of 4 datagrams were lost \(no answer within 1s\)\n", errors)
    assert "a" not in output
    assert "".join(MESSAGES).endswith(output)
