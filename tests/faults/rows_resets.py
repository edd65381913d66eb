"""Row 7: peers that reset the connection, in every state."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from anyio import create_task_group, fail_after, to_thread, wait_all_tasks_blocked

from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.faults.scene import TCP, dialled, engines, logged, nothing_left_behind, unix
from tests.faults.table import Observed, Scene, injects
from tests.net.pairs import reset
from tests.support.peers import SOON, dial, flood, receive_all, until
from tests.support.process import exchange


async def _reset_before_accept(server: Server) -> None:
    sock = dial(server.addresses[0])
    sock.sendall(b"x")
    reset(sock)


async def _reset_mid_echo(server: Server) -> None:
    sock = dial(server.addresses[0])
    assert await to_thread.run_sync(exchange, sock, b"hello") == b"hello"
    sock.sendall(b"more")
    reset(sock)


async def _reset_with_pending_echo(server: Server) -> None:
    """Reset while the server waits for send buffer space with pending echo."""
    sock = dial(server.addresses[0])
    sock.setblocking(False)
    async with create_task_group() as tasks:
        tasks.start_soon(flood, sock)
        await until(lambda: any(each.bytes_received > each.bytes_sent for each in server.peers()))
        tasks.cancel_scope.cancel()
    reset(sock)


async def _reset_half_closed(server: Server) -> None:
    sock = dial(server.addresses[0])
    sock.sendall(b"x")
    sock.shutdown(socket.SHUT_WR)
    reset(sock)


async def _reset_in_drain(server: Server) -> None:
    sock = dial(server.addresses[0])
    await until(lambda: server.stats.active == 1)
    async with create_task_group() as tasks:
        tasks.start_soon(server.drain, 10)
        await wait_all_tasks_blocked()
        reset(sock)


async def _reset_in_linger(server: Server) -> None:
    sock = dial(server.addresses[0])
    await until(lambda: server.stats.active == 1)
    sock.sendall(b"unread")  # otherwise the server would not linger
    [connection] = server._connections
    connection.request_close("drained")
    assert await to_thread.run_sync(receive_all, sock) == b""
    sock.sendall(b"never echoed")
    reset(sock)


MOMENTS: tuple[Callable[[Server], Awaitable[None]], ...] = (
    *(
        _reset_before_accept,
        _reset_mid_echo,
        _reset_with_pending_echo,
        _reset_half_closed,
        _reset_in_drain,
        _reset_in_linger,
    ),
)


async def _reset_at(moment: Callable[[Server], Awaitable[None]], options: ServeOptions) -> str:
    """Return the close reason of a connection that its peer resets at `moment`."""
    async with open_server(TCP, options=options) as server:
        with fail_after(SOON):
            await moment(server)
        await until(lambda: server.stats.closed.total() == 1)
        assert server.stats.active == 0

    [reason] = server.stats.closed
    return reason


@injects(
    7,
    "a RST before accept, mid-echo, with pending echo, half-closed, in a drain, in a linger; each in both engines",
)
async def resets(_: Scene) -> Observed:
    closed: dict[str, object] = {}
    with logged() as lines:
        async with nothing_left_behind():
            for engine in engines():
                for moment in MOMENTS:
                    name = moment.__name__.removeprefix("_reset_").replace("_", " ")
                    closed[f"{engine}, {name}"] = await _reset_at(moment, ServeOptions(engine=engine, linger=10))

    assert lines == []
    assert set(closed.values()) <= {"broken", "drained", "eof"}
    return {"closed": closed, "log lines": 0, "descriptors and tasks left": 0}


@injects(7, "10 peers of a Unix socket close with unread bytes on both sides, in both engines")
async def unix_peers_close_with_unread_bytes(scene: Scene) -> Observed:
    observed: dict[str, object] = {}
    with logged() as lines:
        for engine in engines():
            async with nothing_left_behind():
                async with open_server(unix(scene), options=ServeOptions(engine=engine, linger=10)) as server:
                    with dialled(server.addresses[0], 10) as socks:
                        for sock in socks:
                            assert await to_thread.run_sync(exchange, sock, b"hello") == b"hello"
                            sock.sendall(b"more")
                    await until(lambda: server.stats.closed.total() == 10)
                observed[engine] = dict(server.stats.closed)

    assert lines == []
    return {**observed, "log lines": 0}
