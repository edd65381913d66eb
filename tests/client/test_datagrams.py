"""The UDP client, with servers that lose, duplicate, reorder and corrupt datagrams."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import TypeAlias

import pytest
from anyio import (
    BrokenResourceError,
    BusyResourceError,
    ClosedResourceError,
    Event,
    create_task_group,
    fail_after,
    move_on_after,
)
from anyio.lowlevel import checkpoint

from anyecho.address import UDPAddress, parse_address
from anyecho.client.client import Client, connect
from anyecho.client.options import ConnectOptions
from anyecho.echo import echo
from anyecho.errors import ConnectError, EchoLost, EchoMismatch, EchoStalled, UsageError, unwrap_single
from anyecho.net.poller import Fallback, Poller
from anyecho.net.sockets import SocketOptions
from anyecho.net.udp.stream import DatagramStream, connect_datagrams
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.support.datagrams import polled_client
from tests.support.tasks import wait_all_tasks_blocked

#: Replies of a server to its n-th datagram.
Script: TypeAlias = Callable[[int, bytes], Iterable[bytes]]

#: A short timeout for servers that do not reply.
SHORT = ConnectOptions(timeout=0.5)


@contextmanager
def peer(script: Script) -> Iterator[str]:
    """Yield the address of a server in a thread that replies as `script` says, until it receives b"stop"."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve() -> None:
            number = 0
            while (datagram := (received := sock.recvfrom(65536))[0]) != b"stop":
                for answer in script(number, datagram):
                    sock.sendto(answer, received[1])
                number += 1

        serving = Thread(target=serve)
        serving.start()
        try:
            yield f"udp://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stop:
                stop.sendto(b"stop", sock.getsockname())
            serving.join(10)


def echo_once(_: int, datagram: bytes) -> list[bytes]:
    return [datagram]


def numbered(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


async def send(client: Client, items: Iterable[bytes]) -> list[bytes]:
    async with client.send(items) as replies:
        return [reply async for reply in replies]


@pytest.mark.parametrize("polled", [False, True])
async def test_each_item_is_a_datagram_and_comes_back(polled: bool, poller: Poller | Fallback) -> None:
    sizes: list[int] = []

    def record(_: int, datagram: bytes) -> list[bytes]:
        sizes.append(len(datagram))
        return [datagram]

    items = [b"a", b"", bytes(65507), b"a", b"end"]
    with peer(record) as address:
        reporting = poller if polled else None
        async with await polled_client(parse_address(address), reporting) as client:
            assert await send(client, items) == items
            assert await client.exchange(b"one more") == b"one more"
            assert await client.exchange(b"") == b""
    assert sizes == [1, 0, 65507, 1, 3, 8, 0]


async def test_more_datagrams_than_a_socket_buffer_holds_are_not_lost() -> None:
    unlimited = ServeOptions(udp_rate=math.inf)
    async with (
        open_server("udp://127.0.0.1:0", options=unlimited) as server,
        await connect(server.addresses[0]) as client,
    ):
        assert await send(client, numbered(3000)) == numbered(3000)
        large = [bytes([number]) * 65000 for number in range(20)]
        assert await send(client, large) == large


async def test_lost_datagrams_are_counted_after_the_last_reply() -> None:
    def lossy(number: int, datagram: bytes) -> list[bytes]:
        return [] if number in (10, 20) else [datagram]

    with peer(lossy) as address:
        async with await connect(address, options=SHORT) as client:
            came: list[bytes] = []
            with pytest.raises(
                EchoLost, match=r"^2 of 200 datagrams were lost \(no answer within 500ms\)$"
            ) as caught:
                async with client.send(numbered(200)) as replies:
                    async for reply in replies:
                        came.append(reply)

            # Ten datagrams of one digit come before the first of two.
            assert caught.value.offset == 10
            assert came == [item for item in numbered(200) if item not in (b"10", b"20")]
            # A late reply could match a datagram of another exchange.
            with pytest.raises(BrokenResourceError):
                await client.exchange(b"again")


@pytest.mark.parametrize("count", [1, 100])
async def test_datagrams_without_reply_are_lost_and_make_room_for_others(count: int) -> None:
    with peer(lambda *_: []) as address:
        async with await connect(address, options=ConnectOptions(timeout=0.2)) as client:
            with fail_after(5), pytest.raises(EchoLost, match=rf"^{count} of {count} datagrams were lost"):
                await send(client, numbered(count))


@pytest.mark.parametrize(("size", "outstanding"), [(0, 64), (1, 64), (1 << 12, 16), (40_000, 1)])
async def test_64_datagrams_or_64_kib_are_outstanding_at_most(size: int, outstanding: int) -> None:
    taken: list[bytes] = []

    def endless() -> Iterator[bytes]:
        while True:
            taken.append(bytes(size))
            yield taken[-1]

    with peer(lambda *_: []) as address:
        async with await connect(address) as client, client.send(endless()):
            await wait_all_tasks_blocked()

    assert len(taken) == outstanding + 1  # the last one waits


async def test_a_late_reply_still_counts_as_lost() -> None:
    release = Event()
    with peer(lambda number, datagram: [b"0", b"1"] if number == 1 else [datagram] if number else []) as address:
        async with await connect(address, options=SHORT) as client:

            async def in_turn() -> AsyncGenerator[bytes, None]:
                yield b"0"
                await release.wait()
                yield b"1"

            async def release_when_lost() -> None:
                with fail_after(5):
                    while client._recent.look_up(b"0") is not False:
                        await checkpoint()
                release.set()

            only_late = r"^1 of 2 datagrams were lost, 1 of them only late"
            with pytest.raises(EchoLost, match=only_late), unwrap_single():
                async with create_task_group() as tasks, client.send(in_turn()) as replies:
                    tasks.start_soon(release_when_lost)
                    assert [reply async for reply in replies] == [b"1"]


@pytest.mark.parametrize(
    ("script", "order", "warnings"),
    [
        (["a", "", "cbc", "d", "e"], "acbd", ["1 came twice, 1 out of order"]),
        (["aa", "b", "c", "d", "e"], "abcd", ["1 came twice"]),
        (["a", "", "cb", "d", "e"], "acbd", ["1 out of order"]),
        # A duplicate of an earlier exchange is recognised too.
        (["a", "b", "c", "d", "de"], "abcd", ["1 came twice"]),
        (["a", "b", "c", "d", "e"], "abcd", []),
    ],
)
async def test_duplicates_and_reordering_are_a_warning(
    script: list[str], order: str, warnings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with peer(lambda number, _: [letter.encode() for letter in script[number]]) as address:
        async with await connect(address) as client:
            assert await send(client, [b"a", b"b", b"c", b"d"]) == [letter.encode() for letter in order]
            assert await client.exchange(b"e") == b"e"

    assert [record.getMessage().partition(" were lost; ")[2] for record in caplog.records] == warnings


async def test_a_flood_of_replies_does_not_starve_other_tasks() -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await checkpoint()

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        async with (
            await connect(f"udp://127.0.0.1:{sock.getsockname()[1]}") as client,
            create_task_group() as tasks,
            client.send([b"x"]) as replies,
        ):
            await wait_all_tasks_blocked()
            _, source = sock.recvfrom(1)
            for _ in range(100):
                sock.sendto(b"x", source)
            tasks.start_soon(take_turns)
            assert [reply async for reply in replies] == [b"x"]
            tasks.cancel_scope.cancel()

    assert turns > 50


async def test_a_corrupted_datagram_names_the_wrong_byte() -> None:
    with peer(lambda _, datagram: [datagram.replace(b"c", b"k")]) as address:
        async with await connect(address) as client:
            with pytest.raises(
                EchoMismatch, match=r"^byte 2 of datagram 1 is wrong: sent 0x63, got 0x6b$"
            ) as caught:
                await send(client, [b"first", b"abc"])

    assert caught.value.offset == 7


@pytest.mark.fault(row=19, injected="a client sends datagrams to a closed port")
async def test_an_unreachable_udp_server_is_a_connect_error() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with await connect(f"udp://127.0.0.1:{port}") as client:
        with pytest.raises(ConnectError, match=f"^cannot reach udp://127.0.0.1:{port}: Connection refused$"):
            await client.exchange(b"hello")


async def test_datagrams_after_the_server_closed_are_lost() -> None:
    async with open_server("udp://127.0.0.1:0") as server, await connect(server.addresses[0]) as client:
        gone = Event()

        async def two() -> AsyncGenerator[bytes, None]:
            yield b"before"
            await gone.wait()
            yield b"after"

        with pytest.raises(EchoLost, match=r"^Connection refused: 1 of 2 datagrams are back$"):
            async with client.send(two()) as replies:
                async for _ in replies:
                    await server.drain()
                    gone.set()


async def test_the_deadline_is_for_the_whole_datagram_exchange() -> None:
    with peer(lambda *_: []) as address:
        async with await connect(address, options=ConnectOptions(deadline=0.2)) as client:
            with (
                fail_after(5),
                pytest.raises(EchoStalled, match=r"^the deadline is over: 0 of 2 datagrams are back$"),
            ):
                await send(client, [b"a", b"b"])


async def test_a_message_too_large_for_a_datagram_is_a_usage_error() -> None:
    with peer(echo_once) as address:
        async with await connect(address) as client:
            with pytest.raises(UsageError, match=r"^a message of 65508 bytes is too large for a datagram"):
                await client.exchange(bytes(65508))


async def test_an_exchange_completes_if_the_source_ends_after_the_last_reply() -> None:
    came = Event()

    async def one() -> AsyncGenerator[bytes, None]:
        yield b"one"
        await came.wait()
        # The client waits for the next item, and the source ends.
        await wait_all_tasks_blocked()

    with peer(echo_once) as address:
        async with await connect(address) as client:
            assert await send(client, []) == []
            with fail_after(5):
                async with client.send(one()) as replies:
                    async for _ in replies:
                        came.set()


async def test_an_exception_of_the_source_ends_a_datagram_exchange() -> None:
    def failing() -> Iterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    with peer(echo_once) as address:
        async with await connect(address) as client:
            with pytest.raises(ZeroDivisionError):
                await send(client, failing())


async def test_a_slow_reader_of_replies_loses_nothing() -> None:
    with peer(echo_once) as address:
        async with await connect(address, options=SHORT) as client, client.send(numbered(3)) as replies:
            came = []
            async for reply in replies:
                came.append(reply)
                with move_on_after(0.7):  # longer than the timeout
                    await Event().wait()

    assert came == numbered(3)


async def test_an_unknown_host_name_is_a_connect_error() -> None:
    with pytest.raises(ConnectError, match=r"^cannot connect to udp://no-such-host.invalid:1: no such host"):
        await connect("udp://no-such-host.invalid:1")


async def test_a_connection_to_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel binds to the port it connects to once in 28,000 times, if that is a free ephemeral port."""
    original = socket.socket.connect

    def bind_and_connect(sock: socket.socket, address: tuple[str, int]) -> None:
        sock.bind(address)
        original(sock, address)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setattr(socket.socket, "connect", bind_and_connect)
    with pytest.raises(ConnectError, match=r"Connection refused$"):
        await connect(f"udp://127.0.0.1:{port}")


async def test_a_datagram_stream_works_with_echo() -> None:
    """Two `DatagramStream`, each the peer of the other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        async with await connect(f"udp://127.0.0.1:{unused.getsockname()[1]}") as client:
            assert isinstance(client.stream, DatagramStream)
            host, port = client.stream._sock.getsockname()
            stream = await connect_datagrams(UDPAddress(host=host, port=port), options=SocketOptions())
            client.stream._sock.connect(stream._sock.getsockname())
            async with create_task_group() as tasks:
                tasks.start_soon(echo, stream)
                assert await client.exchange(b"hello") == b"hello"
                tasks.cancel_scope.cancel()
            with pytest.raises(BusyResourceError), unwrap_single():
                async with create_task_group() as tasks:
                    for _ in range(2):
                        tasks.start_soon(stream.send, b"x")
            await stream.aclose()
            for call in (stream.receive(), stream.send(b"x")):
                with pytest.raises(ClosedResourceError):
                    await call
