"""Row 28: descriptor numbers that are reused at once, and waits cancelled in the turn in which they end."""

from __future__ import annotations

import socket
from collections import Counter
from typing import Any

import pytest
from anyio import CancelScope, ClosedResourceError, create_task_group, fail_after, to_thread
from anyio.lowlevel import checkpoint

from anyecho.net.poller import Fallback, Poller, open_poller
from anyecho.net.readiness import Registration
from anyecho.net.stream import PolledStream
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.faults.scene import TCP, engines, unix
from tests.faults.table import Observed, Scene, injects
from tests.net.pairs import KINDS, raw_pair, stream_over
from tests.support.peers import SOON, dial, receive_all
from tests.support.process import exchange

ROUNDS = 50


async def yield_to_others(count: int) -> None:
    """Yield `count` times; after 5, other tasks wait. (`wait_all_tasks_blocked` takes 0.1 s on asyncio.)"""
    for _ in range(count):
        await checkpoint()


def converse(sock: socket.socket) -> bytes:
    with sock:
        sock.sendall(b"am I lost?")
        sock.shutdown(socket.SHUT_WR)
        return receive_all(sock)


@injects(28, "accepting is cancelled in the turn in which a client connects, 50 times, TCP and Unix")
async def accept_cancelled(scene: Scene) -> Observed:
    served = 0
    for _ in range(ROUNDS):
        async with open_server(TCP, unix(scene)) as server, create_task_group() as tasks:
            await yield_to_others(5)
            callers = [dial(address) for address in server.addresses]
            tasks.start_soon(server.drain, 10)
            with fail_after(SOON):
                for sock in callers:
                    served += await to_thread.run_sync(converse, sock) == b"am I lost?"

    assert served == 2 * ROUNDS
    return {"connected": 2 * ROUNDS, "served": served}


@injects(28, "one connection ends and the next begins in the same turn, 50 times, in both engines")
async def number_reused(_: Scene) -> Observed:
    accept = socket.socket.accept
    numbers: list[int] = []

    def recording(sock: socket.socket) -> tuple[socket.socket, Any]:
        accepted, peer = accept(sock)
        numbers.append(accepted.fileno())
        return accepted, peer

    observed: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "accept", recording)
        for engine in engines():
            numbers.clear()
            async with open_server(TCP, options=ServeOptions(engine=engine)) as server:
                [address] = server.addresses
                old = dial(address)
                assert await to_thread.run_sync(exchange, old, b"old") == b"old"
                for _round in range(ROUNDS):
                    old.close()
                    old = dial(address)
                    with fail_after(SOON):
                        assert await to_thread.run_sync(exchange, old, b"new") == b"new"
                old.close()
            reused = len(numbers) - len(set(numbers))
            assert reused >= ROUNDS / 2
            observed[engine] = f"{ROUNDS} of {ROUNDS} echoed, {reused} on a number that had just been another's"

    return observed


@injects(
    28, "a socket is closed while a task waits for it, and its number is reused at once; with and without epoll"
)
async def closed_under_a_waiter(_: Scene) -> Observed:
    woken = 0
    async with open_poller() as running:
        for poller in (running, Fallback()):
            for kind in KINDS:
                with fail_after(SOON):
                    await _close_and_reuse(kind, poller)
                woken += 1

    return {"new waiters": woken, "woken": woken}


async def _wait(registration: Registration, ended: list[str]) -> None:
    registration.may_read = False
    try:
        await registration.readable()
        ended.append("woken")
    except ClosedResourceError:
        ended.append("closed")


async def _close_and_reuse(kind: str, poller: Poller | Fallback) -> None:
    left, right = raw_pair(kind)
    number = left.fileno()
    ended: list[str] = []
    with right:
        async with create_task_group() as tasks:
            old = poller.register(left)
            tasks.start_soon(_wait, old, ended)
            await yield_to_others(5)
            # From here on, nothing is awaited except by the closing itself.
            await old.aclose()
            left.close()
            ours, theirs = sorted(raw_pair(kind), key=lambda sock: sock.fileno() != number)
            with ours, theirs:
                assert ours.fileno() == number
                new = poller.register(ours)
                tasks.start_soon(_send_late, theirs)
                await _wait(new, ended)
                await new.aclose()

    assert sorted(ended) == ["closed", "woken"]


async def _send_late(sock: socket.socket) -> None:
    await yield_to_others(5)
    sock.sendall(b"are you there?")


@injects(28, "a read is cancelled 0 to 4 turns after its bytes arrive, 50 times, with and without epoll")
async def read_cancelled(_: Scene) -> Observed:
    counts: Counter[str] = Counter()
    async with open_poller() as running:
        for poller in (running, Fallback()):
            left, right = raw_pair("tcp")
            with right:
                async with stream_over(left, poller) as stream:
                    for number in range(ROUNDS):
                        item = b"%d" % number
                        got = await _cancelled_read(stream, right, item, number % 5)
                        counts["read before the cancellation" if got else "left to the next read"] += 1
                        with fail_after(SOON):
                            while len(got) < len(item):
                                got += await stream.receive()
                        assert got == item

    return {**counts, "lost": 0}


async def _cancelled_read(stream: PolledStream, peer: socket.socket, item: bytes, delay: int) -> bytes:
    got = bytearray()
    scope = CancelScope()

    async def read() -> None:
        with scope:
            got.extend(await stream.receive())

    async with create_task_group() as tasks:
        tasks.start_soon(read)
        await yield_to_others(5)
        peer.sendall(item)
        await yield_to_others(delay)
        scope.cancel()

    return bytes(got)
