"""Bytes that arrived while the event loop was blocked are read before a time limit fails the exchange."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import repeat
from threading import Thread
from typing import Any

import pytest
from anyio import CancelScope, create_task_group, sleep_forever

from anyecho import clock
from anyecho.client.client import Client, connect
from anyecho.client.options import ConnectOptions
from anyecho.clock import LoopClock, run_within
from anyecho.errors import ConnectError, EchoLost, EchoStalled
from anyecho.net import connect as connecting
from anyecho.net.poller import Fallback, Poller
from anyecho.net.readiness import is_ready
from anyecho.net.tls.contexts import TLSClientOptions
from anyecho.net.udp.stream import DatagramStream
from anyecho.streams import Transcript
from tests.net.pairs import KINDS, raw_pair, stream_over
from tests.support.certificates import server_context, tls_pair
from tests.support.peers import until
from tests.support.tasks import wait_all_tasks_blocked

LIMITS = ("timeout", "deadline")
LIMIT = 0.3
TIMEOUT = 10.0


def limited(limit: str) -> ConnectOptions:
    return ConnectOptions(timeout=LIMIT) if limit == "timeout" else ConnectOptions(deadline=LIMIT)


def block_the_loop(seconds: float = 1.5 * LIMIT) -> None:
    time.sleep(seconds)


async def wait_readable(sock: socket.socket) -> None:
    """Return once `sock` is readable."""
    await until(partial(is_ready, sock))


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("kind", KINDS)
async def test_an_echo_that_arrived_while_the_loop_was_blocked_is_not_late(
    kind: str, limit: str, poller: Poller | Fallback
) -> None:
    ours, theirs = raw_pair(kind)
    options = limited(limit)
    with theirs:
        async with Client(stream_over(ours, poller), options) as client, create_task_group() as tasks:
            tasks.start_soon(client.exchange, b"hello")
            await wait_readable(theirs)
            theirs.sendall(theirs.recv(5))
            block_the_loop()


@pytest.mark.parametrize("limit", LIMITS)
async def test_an_echo_over_tls_that_arrived_while_the_loop_was_blocked_is_not_late(
    limit: str, poller: Poller | Fallback
) -> None:
    ours, theirs = await tls_pair("tcp", poller)
    options = limited(limit)
    async with theirs, Client(ours, options) as client, create_task_group() as tasks:
        tasks.start_soon(client.exchange, b"hello")
        await theirs.send(await theirs.receive())
        block_the_loop()


@pytest.mark.parametrize("limit", LIMITS)
async def test_echo_and_eof_that_arrived_while_the_loop_was_blocked_complete_an_exchange(
    limit: str, poller: Poller | Fallback
) -> None:
    ours, theirs = raw_pair("tcp")
    got: list[bytes] = []
    async with Client(stream_over(ours, poller), limited(limit)) as client:

        async def send() -> None:
            async with client.send([b"hello"]) as echo:
                got.extend([chunk async for chunk in echo])

        async with create_task_group() as tasks:
            tasks.start_soon(send)
            await wait_readable(theirs)
            theirs.sendall(theirs.recv(5))
            await wait_readable(theirs)  # the half-close
            theirs.close()
            block_the_loop()

    assert got == [b"hello"]


class Blocking(Transcript):
    """A stream that blocks the loop before each send."""

    async def send(self, item: bytes) -> None:
        block_the_loop()
        await super().send(item)


async def test_the_stall_timer_of_an_item_begins_after_it_is_sent(poller: Poller | Fallback) -> None:
    ours, theirs = raw_pair("tcp")
    answering = Thread(target=lambda: theirs.sendall(theirs.recv(5)))
    answering.start()
    with theirs:
        stream = Blocking(stream_over(ours, poller), lambda what, chunk: None)
        async with Client(stream, limited("timeout")) as client:
            assert await client.exchange(b"hello") == b"hello"
        answering.join()


@pytest.mark.parametrize("limit", LIMITS)
async def test_a_silent_peer_is_a_stall_after_the_loop_was_blocked(limit: str, poller: Poller | Fallback) -> None:
    ours, theirs = raw_pair("tcp")
    with theirs:
        async with Client(stream_over(ours, poller), limited(limit)) as client:

            async def given_up() -> None:
                with pytest.raises(EchoStalled):
                    await client.exchange(b"hello")

            async with create_task_group() as tasks:
                tasks.start_soon(given_up)
                await wait_readable(theirs)
                block_the_loop()


async def test_a_repeatedly_blocked_loop_does_not_postpone_the_deadline(
    poller: Poller | Fallback,
) -> None:
    def echo_for_ever() -> None:
        with theirs, suppress(ConnectionError):  # the client closes with bytes unread
            while chunk := theirs.recv(65536):
                theirs.sendall(chunk)

    ours, theirs = raw_pair("tcp")
    echoing = Thread(target=echo_for_ever)
    echoing.start()
    async with Client(stream_over(ours, poller), limited("deadline")) as client:
        with pytest.raises(EchoStalled, match="the deadline is over"):
            async with client.send(repeat(b"x")) as echo:
                async for _ in echo:
                    block_the_loop(LIMIT / 2)
    echoing.join()


@contextmanager
def datagram_peer() -> Iterator[tuple[str, socket.socket]]:
    """Yield the address of a UDP socket, and the socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(TIMEOUT)

        yield f"udp://127.0.0.1:{sock.getsockname()[1]}", sock


def answer(sock: socket.socket) -> None:
    datagram, source = sock.recvfrom(100)
    sock.sendto(datagram, source)


@pytest.mark.parametrize("limit", LIMITS)
async def test_a_datagram_that_arrived_while_the_loop_was_blocked_is_not_lost(limit: str) -> None:
    with datagram_peer() as (address, theirs):
        async with await connect(address, options=limited(limit)) as client, create_task_group() as tasks:
            tasks.start_soon(client.exchange, b"hello")
            await wait_readable(theirs)
            answer(theirs)
            block_the_loop()


async def test_the_timeout_of_a_datagram_begins_after_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    send = DatagramStream.send_nowait

    def blocked(stream: DatagramStream, item: bytes) -> bool:
        block_the_loop()
        return send(stream, item)

    monkeypatch.setattr(DatagramStream, "send_nowait", blocked)
    with datagram_peer() as (address, theirs):
        answering = Thread(target=answer, args=[theirs])
        answering.start()
        async with await connect(address, options=limited("timeout")) as client:
            assert await client.exchange(b"hello") == b"hello"
        answering.join()


@pytest.mark.parametrize("limit", LIMITS)
async def test_a_datagram_without_reply_is_lost_after_the_loop_was_blocked(limit: str) -> None:
    with datagram_peer() as (address, theirs):
        async with await connect(address, options=limited(limit)) as client:

            async def given_up() -> None:
                with pytest.raises(EchoLost if limit == "timeout" else EchoStalled):
                    await client.exchange(b"hello")

            async with create_task_group() as tasks:
                tasks.start_soon(given_up)
                await wait_readable(theirs)
                block_the_loop()


@pytest.mark.parametrize("limit", LIMITS)
async def test_a_connection_made_while_the_loop_was_blocked_succeeds(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = connecting._connect

    async def blocked(*args: Any) -> Any:
        block_the_loop()
        return await made(*args)

    monkeypatch.setattr(connecting, "_connect", blocked)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        async with await connect(address, options=limited(limit)):
            pass


@pytest.mark.parametrize("limit", LIMITS)
async def test_a_handshake_goes_on_after_the_loop_was_blocked(limit: str) -> None:
    def shake_hands() -> None:
        with server_context().wrap_socket(listener.accept()[0], server_side=True) as sock:
            sock.recv(1)

    options = replace(limited(limit), tls=TLSClientOptions(insecure=True))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def connected() -> None:
            async with await connect(f"tls://127.0.0.1:{listener.getsockname()[1]}", options=options):
                pass

        shaking = Thread(target=shake_hands)
        async with create_task_group() as tasks:
            tasks.start_soon(connected)
            await wait_readable(listener)
            shaking.start()
            block_the_loop()
        shaking.join()


async def test_a_host_that_does_not_answer_is_given_up_after_the_loop_was_blocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def silent(*_: object) -> None:
        await wait_all_tasks_blocked()
        block_the_loop()
        await sleep_forever()

    monkeypatch.setattr(connecting, "_connect", silent)
    with pytest.raises(ConnectError, match="no answer within 300ms"):
        await connect("tcp://127.0.0.1:1", options=ConnectOptions(timeout=LIMIT))


async def test_a_gap_between_two_ticks_counts_as_two_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 101.0, 102.5, 3600.0, 3601.0])
    monkeypatch.setattr(clock, "current_time", lambda: next(times))
    measured = LoopClock(1.0)
    ticks = [(measured.tick(), measured.was_blocked) for _ in range(4)]
    assert ticks == [(1.0, False), (1.5, False), (2.0, True), (1.0, False)]
    assert measured.elapsed == 5.5


async def test_a_cancellation_after_the_result_does_not_lose_the_result() -> None:
    with CancelScope() as outside:

        async def result() -> str:
            outside.cancel()
            return "result"

        returned = await run_within(TIMEOUT, result)

    assert returned == "result"
