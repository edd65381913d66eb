"""Peers that fragment a TLS 1.3 message over several records get their whole echo, and a close_notify."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from anyio import create_task_group, fail_after

from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.net.tls import stream as tls_stream
from anyecho.server.phases import CLOSING
from anyecho.server.server import Server, open_server
from tests.support.certificates import Files
from tests.support.peers import SOON, dial, unread, until, until_closed
from tests.support.tls import TLS, options
from tests.support.tls13 import ALERT, CLOSE_NOTIFY, DATA, HANDSHAKE, KEY_UPDATE, KEY_UPDATE_REQUESTED, CraftedPeer

BYE = (ALERT, CLOSE_NOTIFY)
#: Options that select the code paths of the engines.
WAYS: dict[str, dict[str, Any]] = {
    "unlimited": {},
    "max-bytes": {"max_bytes": 1 << 20},
    "rate-limit": {"rate_limit": 1e9, "engine": "auto"},
}
#: What a peer sends before its close_notify: "u" is a KeyUpdate, "U" one that requests another, other letters are
#: data.
SAYINGS = ("u", "aub", "abu", "uab", "Uab", "aUb", "abU", "auUb", "UUU", "aUuUuUb")


@asynccontextmanager
async def crafted(files: Files, **others: Any) -> AsyncIterator[tuple[Server, CraftedPeer]]:
    async with open_server(TLS, options=options(files, **others)) as server:
        with fail_after(SOON):
            peer = await called(server)
        yield server, peer
        peer.close()


async def called(server: Server) -> CraftedPeer:
    """The only peer of the server, after its handshake."""
    peer = await CraftedPeer.client(dial(server.addresses[0]))
    await until(lambda: server.peers() != [])
    return peer


async def say(server: Server, peer: CraftedPeer, records: bytes, *, apart: bool = False) -> None:
    """Send `records` in one segment, or `apart`: each after the server has read the one before."""
    [connection] = server._connections
    while records:
        size = 5 + int.from_bytes(records[3:5], "big") if apart else len(records)
        peer.send(records[:size])
        records = records[size:]
        await until(
            lambda: connection.phase >= CLOSING or connection.sock.fileno() < 0 or not unread(connection.sock)
        )


def spelled(peer: CraftedPeer, saying: str, *sizes: int) -> bytes:
    """Records for `saying`; each KeyUpdate is fragmented into `sizes` bytes and the rest."""
    records = b""
    for letter in saying:
        if letter in "uU":
            records += peer.update_keys(*sizes, requested=letter == "U")
        else:
            records += peer.seal(DATA, letter.encode())
    return records


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("apart", [False, True], ids=["at-once", "apart"])
@pytest.mark.parametrize("sizes", [(4,), (1, 1, 1, 1)], ids=["4+1", "1+1+1+1+1"])
@pytest.mark.by_turns("anyio_backend")
async def test_data_around_a_fragmented_message_is_echoed(
    sizes: tuple[int, ...], apart: bool, way: str, files: Files
) -> None:
    async with open_server(TLS, options=options(files, **WAYS[way])) as server:
        for number, saying in enumerate(SAYINGS, start=1):
            with fail_after(SOON):
                peer = await called(server)
                await say(server, peer, spelled(peer, saying, *sizes) + peer.seal(*BYE), apart=apart)
                data = saying.replace("u", "").replace("U", "").encode()
                assert await peer.read_all() == [*([(DATA, data)] if data else []), BYE], saying
                peer.close()
                await until_closed(server, number)
            assert server.stats.closed == {"eof": number}, saying
        assert server.stats.bytes_received == server.stats.bytes_sent


@pytest.mark.parametrize("way", WAYS)
async def test_a_request_for_new_keys_is_answered_before_the_next_data(way: str, files: Files) -> None:
    async with crafted(files, **WAYS[way]) as (server, peer):
        with fail_after(SOON):
            for _ in range(3):
                await say(server, peer, spelled(peer, "aU", 4))
                assert await peer.read() == (DATA, b"a")
        # The last one may still be pending.
        assert 2 <= peer.messages.count(KEY_UPDATE) <= 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("data", [b"", b"data"], ids=["", "after data"])
async def test_a_drain_sends_close_notify_once_the_message_is_complete(data: bytes, way: str, files: Files) -> None:
    async with crafted(files, **WAYS[way], linger=SOON) as (server, peer):
        await say(server, peer, (peer.seal(DATA, data) if data else b"") + peer.seal(HANDSHAKE, KEY_UPDATE[:4]))
        async with create_task_group() as tasks:
            tasks.start_soon(server.drain, 0)
            await until(lambda: all(connection.phase is CLOSING for connection in server._connections))
            peer.send(peer.seal(HANDSHAKE, KEY_UPDATE[4:]))
            with fail_after(SOON):
                assert data == b"" or await peer.read() == (DATA, data)
                assert await peer.read() == BYE
            peer.close()
        assert server.stats.closed == {"drained": 1}


@pytest.mark.parametrize("way", WAYS)
async def test_a_drain_ends_though_the_message_stays_incomplete(
    way: str, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_stream, "CLOSE_TIMEOUT", 4 * SOON)  # the stream's timeout must not be added to linger
    async with crafted(files, **WAYS[way]) as (server, peer):
        await say(server, peer, peer.seal(DATA, b"a") + peer.seal(HANDSHAKE, KEY_UPDATE[:4]))
        start = time.monotonic()
        await server.drain(0)
        assert time.monotonic() - start < SOON
        assert server.stats.closed == {"drained": 1}


@pytest.mark.parametrize("way", WAYS)
async def test_an_unfinished_message_ends_by_the_idle_timeout(way: str, files: Files) -> None:
    async with crafted(files, **WAYS[way], idle_timeout=0.1, linger=0.1) as (server, peer):
        await say(server, peer, peer.seal(DATA, b"a") + peer.seal(HANDSHAKE, KEY_UPDATE[:4]))
        with fail_after(SOON):
            await until_closed(server)
        assert server.stats.closed == {"idle": 1}


@pytest.mark.parametrize("way", WAYS)
async def test_close_notify_inside_a_message_is_a_tls_error(way: str, files: Files) -> None:
    async with crafted(files, **WAYS[way]) as (server, peer):
        await say(server, peer, peer.seal(HANDSHAKE, KEY_UPDATE[:4]) + peer.seal(*BYE))
        with fail_after(SOON):
            assert await peer.read_all() == []
            await until_closed(server)
        assert server.stats.closed == {"tls_error": 1}


@pytest.mark.parametrize("way", WAYS)
async def test_a_flood_of_fragmented_messages_delays_no_other_connection(
    way: str, files: Files, ca_options: ConnectOptions
) -> None:
    """Of many KeyUpdates that request an answer, at most one answer is pending."""
    async with (
        crafted(files, **WAYS[way]) as (server, peer),
        await connect(server.addresses[0], options=ca_options) as neighbour,
    ):
        for _ in range(20):
            peer.send(b"".join(spelled(peer, "UU", *sizes) for sizes in [(4,), (1, 1, 1, 1)] * 10))
            with fail_after(SOON):
                await neighbour.exchange(b"x" * 100)
        peer.send(spelled(peer, "a") + peer.seal(*BYE))
        with fail_after(SOON):
            assert await peer.read_all() == [(DATA, b"a"), BYE]
        assert peer.messages.count(KEY_UPDATE) >= 1
        assert KEY_UPDATE_REQUESTED not in peer.messages
