"""Rows 8 to 10: no byte of an echo is lost, whichever side closes first, for any size."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from time import monotonic
from typing import Any

import anyio
from anyio import create_task_group, fail_after, to_thread

from anyecho.address import Address
from anyecho.client.client import connect
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.faults.scene import SLACK, TCP, engines, unix
from tests.faults.table import Observed, Scene, injects
from tests.support.peers import dial, receive_all, until
from tests.support.process import resident

MIB = 1 << 20


def send_all_then_read(address: Address, payload: bytes) -> bytes:
    """Half-close while most of the echo is pending; only then begin to read."""
    with dial(address) as sock:

        def send() -> None:
            sock.sendall(payload)
            sock.shutdown(socket.SHUT_WR)
            sent.set()

        sent = threading.Event()
        sending = threading.Thread(target=send)
        sending.start()
        # More than the kernels' buffers hold cannot be sent completely before something is read.
        sent.wait(0.05)
        try:
            return receive_all(sock)
        finally:
            sending.join()


@injects(8, "peers half-close after 0, 1, 300000 and 8 Mi bytes, before they read any; TCP and Unix, both engines")
async def half_closes(scene: Scene) -> Observed:
    sizes = (0, 1, 300_000, 8 * MIB)
    closed: dict[str, object] = {}
    for engine in engines():
        async with open_server(TCP, unix(scene), options=ServeOptions(engine=engine)) as server:
            for address in server.addresses:
                for size in sizes:
                    payload = os.urandom(size)
                    with fail_after(10):
                        assert await to_thread.run_sync(send_all_then_read, address, payload) == payload
            await until(lambda: server.stats.closed == {"eof": 2 * len(sizes)})
            closed[engine] = dict(server.stats.closed)

    return {"came back": "all, then the end", **closed}


def send_on(address: Address, payload: bytes, stopped: threading.Event) -> bytes:
    """Send `payload`, then more bytes after the server has stopped reading them; only then read."""
    with closing(dial(address)) as sock:
        sock.sendall(payload)
        stopped.wait(10)
        for _ in range(20):
            sock.sendall(b"too late")
        sock.shutdown(socket.SHUT_WR)
        return receive_all(sock)


@injects(
    9,
    "a drain, and max_bytes, close on peers that have sent 200000 bytes, read none and keep sending; both engines",
)
async def server_closes_while_peer_sends(scene: Scene) -> Observed:
    payload = os.urandom(200_000)
    got: dict[str, object] = {}
    for engine in engines():
        for why, options in {
            "drain": ServeOptions(engine=engine),
            "max_bytes": ServeOptions(engine=engine, max_bytes=200_000),
        }.items():
            for bind in (TCP, unix(scene)):
                async with open_server(bind, options=options) as server:
                    back = await _echo_before_close(server, payload)
                assert back == payload
                reason = "drained" if why == "drain" else "bytes"
                assert server.stats.closed == {reason: 1}
                got[f"{engine}, {why}, {str(bind).partition(':')[0]}"] = f"{len(back)} of 200000"

    return got


async def _echo_before_close(server: Server, payload: bytes) -> bytes:
    """Return the echo to a peer that keeps sending while the server closes."""
    stopped, back = threading.Event(), bytearray()

    async def talk() -> None:
        back.extend(await to_thread.run_sync(send_on, server.addresses[0], payload, stopped))

    with fail_after(10):
        async with create_task_group() as tasks:
            tasks.start_soon(talk)
            await until(lambda: sum(peer.bytes_sent for peer in server.peers()) == len(payload))
            if not server.options.max_bytes:
                tasks.start_soon(server.drain, 0)
                await anyio.wait_all_tasks_blocked()
            stopped.set()

    return bytes(back)


def numbered(total: int, digest: Any) -> Iterator[bytes]:
    """Yield distinct chunks of 64 KiB, `total` bytes in all."""
    rest = os.urandom((1 << 16) - 8)
    for number in range(total >> 16):
        chunk = number.to_bytes(8, "big") + rest
        digest.update(chunk)
        yield chunk


async def _message(address: Address, total: int) -> Observed:
    sent, back = hashlib.sha256(), hashlib.sha256()
    async with await connect(address) as client:
        await client.exchange(bytes(MIB))
        start, before, most, count, looks = monotonic(), resident(), 0, 0, 0
        async with client.send(numbered(total, sent)) as echo:
            async for chunk in echo:
                back.update(chunk)
                if (count := count + len(chunk)) >> 20 > looks:
                    looks = count >> 20
                    most = max(most, resident())
        seconds = monotonic() - start

    assert (count, back.digest()) == (total, sent.digest())
    # At most 8 MiB are outstanding.
    assert most - before < SLACK * 8 * MIB
    return {"seconds": f"{seconds:.2f}", "memory": f"+ {(most - before) / MIB:.1f} MiB", "SHA-256": "equal"}


@injects(10, "a client sends 100 MiB over TCP, 30 MiB over a Unix socket, half-closes, and reads at the same time")
async def a_large_message(scene: Scene) -> Observed:
    async with open_server(TCP, unix(scene)) as server:
        tcp, path = server.addresses
        return {"TCP": dict(await _message(tcp, 100 * MIB)), "Unix": dict(await _message(path, 30 * MIB))}
