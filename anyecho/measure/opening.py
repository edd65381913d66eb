"""Open the connections of a load, one after the other at a rate, before the load begins."""

from __future__ import annotations

__all__ = ("OpenConnection", "Opened", "open_connections")

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from anyio import CancelScope, Semaphore, create_task_group, current_time, sleep
from anyio.abc import SocketAttribute, TaskGroup

from anyecho.address import Address, UDPAddress
from anyecho.client.client import Client, connect_checked
from anyecho.errors import ConnectError, EchoError, UsageError, unwrap_single
from anyecho.measure.datagram_load import SIZE_MIN, DatagramConnection
from anyecho.measure.drivers import attach
from anyecho.measure.load_connection import LoadConnection
from anyecho.measure.options import BenchOptions
from anyecho.measure.traffic import Traffic
from anyecho.net.poller import Fallback, Poller
from anyecho.net.tls.stream import TLSStream
from anyecho.net.tls.wire import TLSWire
from anyecho.net.udp.stream import DATAGRAM_MAX, DatagramStream
from anyecho.net.wire import PlainWire, Wire

#: Concurrent connection attempts; more would only wait in the server's accept backlog.
_CONNECTING = 32

OpenConnection: TypeAlias = LoadConnection | DatagramConnection


@dataclass
class Opened:
    connections: list[OpenConnection] = field(default_factory=list)
    failures: list[ConnectError] = field(default_factory=list)


@asynccontextmanager
async def open_connections(
    address: Address,
    options: BenchOptions,
    traffic: Traffic,
    poller: Poller | Fallback,
    connecting: AbstractContextManager[None],
) -> AsyncIterator[Opened]:
    """Yield the connections, attached to `poller`; fewer if `connecting` cancels its block or some were refused.

    They are closed after the block. Raises `ConnectError` if the first cannot be opened, or over UDP has no reply,
    and `UsageError` for a size that no datagram has.
    """
    if isinstance(address, UDPAddress) and not SIZE_MIN <= options.size <= DATAGRAM_MAX:
        text = f"size must be {SIZE_MIN} to {DATAGRAM_MAX} bytes over UDP, not {options.size}"
        raise UsageError(text, options=("size",))
    opened, clients = Opened(), list[Client]()
    try:
        with connecting:
            await _connect_all(address, options, clients, opened.failures)
        with unwrap_single() as whole:
            async with create_task_group() as tasks:
                opened.connections += [
                    _attached(client, number, traffic, poller, tasks) for number, client in enumerate(clients)
                ]
                try:
                    yield opened
                except BaseException as exc:
                    whole.append(exc)
                    raise
                finally:
                    for connection in opened.connections:
                        connection.stop()
                tasks.cancel_scope.cancel()
    finally:
        with CancelScope(shield=True):
            for client in clients:
                await client.aclose()


async def _connect_all(
    address: Address, options: BenchOptions, clients: list[Client], failures: list[ConnectError]
) -> None:
    first = await connect_checked(address, options.connect)
    clients.append(first)
    if isinstance(address, UDPAddress):
        await _check_reply(first, address)
    slots = Semaphore(_CONNECTING)
    begin = current_time()

    async def connect() -> None:
        try:
            clients.append(await connect_checked(address, options.connect))
        except ConnectError as exc:
            failures.append(exc)
        finally:
            slots.release()

    with unwrap_single():
        async with create_task_group() as tasks:
            for number in range(1, options.connections):
                await slots.acquire()
                if options.connect_rate is not None:
                    await sleep(max(begin + number / options.connect_rate - current_time(), 0))
                tasks.start_soon(connect)


async def _check_reply(client: Client, address: Address) -> None:
    """Exchange a datagram: only a reply shows that a server is there. Raises `ConnectError`."""
    try:
        await client.exchange(b"anyecho")
    except EchoError as exc:
        raise ConnectError(f"cannot reach {address}: a first datagram was not echoed ({exc})") from exc


def _attached(
    client: Client, number: int, traffic: Traffic, poller: Poller | Fallback, tasks: TaskGroup
) -> OpenConnection:
    stream = client.stream
    sock = stream.extra(SocketAttribute.raw_socket)
    connection: OpenConnection
    if isinstance(stream, DatagramStream):
        connection = DatagramConnection(sock, number, traffic)
    else:
        wire: Wire = TLSWire(sock, stream.records) if isinstance(stream, TLSStream) else PlainWire(sock)
        connection = LoadConnection(wire, number, traffic)
    attach(connection, sock, poller, tasks)
    return connection
