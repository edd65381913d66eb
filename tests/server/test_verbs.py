"""The state of a server when `close`, `drain`, `abort` or `wait_closed` returns."""

from __future__ import annotations

import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import create_task_group, fail_after, to_thread

from anyecho.address import Address, TCPAddress, UnixAddress
from anyecho.client.client import connect
from anyecho.errors import UsageError
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.support.certificates import Files
from tests.support.peers import SOON, converse, dial, until
from tests.support.tasks import wait_all_tasks_blocked
from tests.support.tls import TLS, options, shake_hands

METHODS = ("close", "drain", "abort", "wait_closed")


async def test_a_peer_that_connects_after_close_is_refused(server: Server) -> None:
    await wait_all_tasks_blocked()
    server.close()
    with pytest.raises(OSError, match=r"refused|No such file"):
        dial(server.addresses[0])
    server.close()
    await wait_all_tasks_blocked()
    with pytest.raises(OSError, match=r"refused|No such file"):
        dial(server.addresses[0])


async def test_a_server_closed_before_it_has_run_accepts_nothing(server: Server) -> None:
    server.close()
    with fail_after(SOON):
        await server.wait_closed()
    assert server.stats.accepted == 0


async def test_a_connection_continues_after_close(server: Server) -> None:
    async with await connect(server.addresses[0]) as client:
        await client.exchange(b"before")
        server.close()
        for _ in range(3):
            assert await client.exchange(b"after") == b"after"
        assert server.stats.active == 1


async def test_a_socket_opened_right_after_close_works(server: Server) -> None:
    """Its descriptor may have the number that the listener had, for which a task may still wait."""
    async with await connect(server.addresses[0]) as client:
        await client.exchange(b"x")
        async with open_server("tcp://127.0.0.1:0") as other:
            await wait_all_tasks_blocked()
            server.close()
            async with await connect(other.addresses[0]) as first, await connect(other.addresses[0]) as second:
                with fail_after(SOON):
                    await first.exchange(b"first")
                    await second.exchange(b"second")
                    await client.exchange(b"client")


async def test_a_closed_server_waits_for_its_connections(server: Server) -> None:
    async with await connect(server.addresses[0]) as client, create_task_group() as tasks:
        await client.exchange(b"x")
        closed = anyio.Event()

        async def wait() -> None:
            await server.wait_closed()
            closed.set()

        tasks.start_soon(wait)
        server.close()
        await wait_all_tasks_blocked()
        assert not closed.is_set()
        await client.aclose()
        with fail_after(SOON):
            await closed.wait()

    assert server.stats.closed == {"eof": 1}


async def test_wait_closed_does_not_close(server: Server) -> None:
    with anyio.move_on_after(0.05) as scope:
        await server.wait_closed()
    assert scope.cancelled_caught
    assert await to_thread.run_sync(converse, dial(server.addresses[0]), b"hello") == b"hello"


async def test_a_connection_in_the_backlog_is_served_after_close(server: Server) -> None:
    socks = [dial(server.addresses[0]) for _ in range(100)]
    server.close()
    assert server.stats.accepted == 100
    assert [await to_thread.run_sync(converse, sock, b"hello") for sock in socks] == [b"hello"] * 100
    with fail_after(SOON):
        await server.wait_closed()
    assert server.stats.closed == {"eof": 100}


async def test_close_resets_only_connections_over_max_connections(carrier: Address) -> None:
    async with open_server(carrier, options=ServeOptions(max_connections=2, linger=0.5)) as server:
        socks = [dial(server.addresses[0]) for _ in range(3)]
        server.close()
        for sock in socks[:2]:
            assert await to_thread.run_sync(converse, sock, b"hello") == b"hello"
        with socks[2], pytest.raises(ConnectionError):
            socks[2].sendall(b"x")
            assert socks[2].recv(1)
            raise ConnectionError


async def test_close_answers_datagrams_that_have_arrived_and_frees_the_port() -> None:
    async with open_server("udp://127.0.0.1:0") as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(SOON)
            client.connect(("127.0.0.1", server.port))
            for number in range(10):
                client.send(b"%d" % number)
            server.close()
            assert [client.recv(10) for _ in range(10)] == [b"%d" % number for number in range(10)]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as successor:
            successor.bind(("127.0.0.1", server.port))


def call(server: Server, method: str, caught: list[BaseException]) -> None:
    async def awaited(coroutine: Awaitable[None]) -> None:
        await coroutine

    try:
        result: Any = getattr(server, method)()
        if result is not None:
            anyio.run(awaited, result)
    except BaseException as exc:
        caught.append(exc)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.by_turns("engine")
async def test_a_method_called_in_another_thread_raises_and_changes_nothing(method: str, server: Server) -> None:
    async with await connect(server.addresses[0]) as client:
        await client.exchange(b"before")
        caught: list[BaseException] = []
        thread = threading.Thread(target=call, args=(server, method, caught), daemon=True)
        thread.start()
        await to_thread.run_sync(thread.join, SOON)

        [error] = caught
        assert isinstance(error, RuntimeError)
        assert str(error).startswith(f"server.{method}() was called in another thread")
        assert "\n" not in str(error)
        assert await client.exchange(b"after") == b"after"
        assert await to_thread.run_sync(converse, dial(server.addresses[0]), b"hello") == b"hello"


async def test_another_thread_can_call_a_method_through_the_event_loop(server: Server) -> None:
    def close_and_wait() -> None:
        anyio.from_thread.run_sync(server.close)
        anyio.from_thread.run(server.wait_closed)

    with fail_after(SOON):
        await to_thread.run_sync(close_and_wait)


@pytest.mark.parametrize("thread", [False, True], ids=["same thread", "other thread"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.by_turns("engine")
async def test_a_method_does_nothing_after_the_block(method: str, thread: bool, carrier: Address) -> None:
    async with open_server(carrier) as server, await connect(server.addresses[0]) as client:
        await client.exchange(b"x")
    closed = dict(server.stats.closed)
    caught: list[BaseException] = []
    for _ in range(2):
        if thread:
            await to_thread.run_sync(call, server, method, caught)
        elif (result := getattr(server, method)()) is not None:
            with fail_after(SOON):
                await result

    assert not caught
    assert server.stats.closed == closed


@pytest.mark.parametrize(
    "methods", [("close", "drain"), ("drain", "abort"), ("abort", "drain"), ("abort", "close")]
)
async def test_methods_can_be_called_one_after_another(methods: tuple[str, ...], server: Server) -> None:
    with dial(server.addresses[0]):
        await until(lambda: server.stats.active == 1)
        for method in methods:
            arguments = (0,) if method == "drain" else ()
            if (result := getattr(server, method)(*arguments)) is not None:
                with fail_after(SOON):
                    await result
        with fail_after(SOON):
            await server.wait_closed()

    assert server.stats.active == 0


async def test_a_cancelled_drain_leaves_the_server_closed_and_its_connections_open(server: Server) -> None:
    async with await connect(server.addresses[0]) as client:
        await client.exchange(b"before")
        with anyio.move_on_after(0.05) as scope:
            await server.drain(60)
        assert scope.cancelled_caught
        assert await client.exchange(b"after") == b"after"
        with pytest.raises(OSError, match=r"refused|No such file"):
            dial(server.addresses[0])


async def leave(server: Server) -> None:
    pass


async def drain(server: Server) -> None:
    await server.drain(0)


async def abort(server: Server) -> None:
    server.abort()


ENDS: dict[str, Callable[[Server], Awaitable[None]]] = {"leave": leave, "drain": drain, "abort": abort}


@pytest.mark.parametrize("end", ENDS)
async def test_a_peer_whose_fin_has_arrived_counts_as_eof(end: str, carrier: Address) -> None:
    with fail_after(SOON):
        async with open_server(carrier, options=ServeOptions(linger=60)) as server:
            with dial(server.addresses[0]) as sock:
                await to_thread.run_sync(sock.sendall, b"x")
                assert await to_thread.run_sync(sock.recv, 1) == b"x"
                sock.shutdown(socket.SHUT_WR)  # and no other task runs from here
                await ENDS[end](server)
                if end != "leave":
                    await server.wait_closed()

    assert server.stats.closed == {"eof": 1}


@pytest.mark.parametrize("end", ENDS)
async def test_a_peer_whose_close_notify_has_arrived_counts_as_eof(end: str, files: Files) -> None:
    with fail_after(SOON):
        async with open_server(TLS, options=options(files, linger=60)) as server:
            stream = await shake_hands(server.addresses[0])
            await stream.send(b"x")
            assert await stream.receive() == b"x"
            stream.records.send_eof()
            stream.records.flush(stream._sock.send)
            await ENDS[end](server)
            if end != "leave":
                await server.wait_closed()
        await stream.aclose()

    assert server.stats.closed == {"eof": 1}


@pytest.mark.parametrize("end", ENDS)
async def test_a_peer_whose_last_bytes_were_not_echoed_does_not_count_as_eof(end: str, carrier: Address) -> None:
    async with open_server(carrier, options=ServeOptions(linger=0.1)) as server:
        with dial(server.addresses[0]) as sock:
            await until(lambda: server.stats.active == 1)
            await wait_all_tasks_blocked()
            sock.sendall(b"lost")
            sock.shutdown(socket.SHUT_WR)
            await ENDS[end](server)
            if end != "leave":
                await server.wait_closed()

    assert server.stats.closed == {"cancelled" if end == "abort" else "drained": 1}


async def test_an_exception_in_the_block_cancels_the_connections(carrier: Address, opened: ExitStack) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_server(carrier, options=ServeOptions(linger=0.1)) as server:
            opened.enter_context(dial(server.addresses[0]))  # still open when the block ends
            await until(lambda: server.stats.active == 1)
            raise ZeroDivisionError

    assert server.stats.closed == {"cancelled": 1}


async def test_the_port_and_the_first_address_of_a_server() -> None:
    async with open_server("tcp://127.0.0.1:0") as server:
        [address] = server.addresses
        assert server.address is address
        assert server.address == server.addresses[0]
        with dial(server.address) as sock:
            assert sock.getpeername() == ("127.0.0.1", server.port)


async def test_a_port_that_addresses_share_is_the_port_of_the_server(short_path: Path) -> None:
    async with open_server(f"unix:{short_path}/echo", "tcp://localhost:0") as server:
        assert isinstance(server.address, UnixAddress)
        assert {each.port for each in server.addresses if isinstance(each, TCPAddress)} == {server.port}


async def test_port_without_a_single_port_is_an_error_that_names_the_addresses(short_path: Path) -> None:
    async with open_server("tcp://127.0.0.1:0", "tcp://127.0.0.1:0") as server:
        first, second = server.addresses
        with pytest.raises(UsageError, match=r"^the server has more than one port: it listens on ") as caught:
            _ = server.port
        assert f"{first}, {second}" in str(caught.value)
    async with open_server(f"unix:{short_path}/echo") as server:
        with pytest.raises(UsageError, match=r"^the server has no port: it listens on unix:/"):
            _ = server.port
