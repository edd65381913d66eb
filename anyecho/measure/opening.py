"""Open the connections of a load, one after the other at a rate, before the load begins."""

from __future__ import annotations

__all__ = ("OpenConnection", "Opened", "open_connections")

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from anyio import CancelScope, Semaphore, create_task_group, current_time, sleep
from anyio.abc import SocketAttribute, TaskGroup

from anyecho.address import Address, UDPAddress
from anyecho.client.client import Client, connect_checked
from anyecho.client.options import ConnectOptions
from anyecho.errors import ConnectError, EchoError, EchoLost, UsageError, unwrap_single
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
from anyecho.units import format_duration

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
        with unwrap_single() as unchanged:
            async with create_task_group() as tasks:
                opened.connections += [
                    _attached(client, number, traffic, poller, tasks) for number, client in enumerate(clients)
                ]
                try:
                    with unchanged:
                        yield opened
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
    connect_options = options.connect
    if isinstance(address, UDPAddress):
        connect_options = replace(connect_options, family=await _find_family(address, connect_options))
    clients.append(await connect_checked(address, connect_options))
    slots = Semaphore(_CONNECTING)
    begin = current_time()

    async def connect() -> None:
        try:
            clients.append(await connect_checked(address, connect_options))
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


async def _find_family(address: UDPAddress, options: ConnectOptions) -> Literal[4, 6]:
    """Exchange a datagram, and return the IP version of the endpoint that echoed it. Raises `ConnectError`.

    Only a reply shows that a server is there. The socket is closed: a duplicate that comes later is no wrong reply
    of the load.
    """
    async with await connect_checked(address, options) as client:
        try:
            async with client.send([b"anyecho"]) as echo:
                async for _ in echo:
                    break
        except EchoLost as exc:
            within = "" if options.timeout is None else f" within {format_duration(options.timeout)}"
            raise ConnectError(f"cannot reach {address}: no reply to a first datagram{within}") from exc
        except EchoError as exc:
            raise ConnectError(f"cannot reach {address}: the reply to a first datagram is wrong") from exc

        return 6 if ":" in str(client.stream.extra(SocketAttribute.remote_address)[0]) else 4


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
