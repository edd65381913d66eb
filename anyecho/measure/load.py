"""Closed-loop load: many connections, each of which sends its next message when the last is back and equal.

A slower server gets fewer messages, so a latency is the duration of an echo, not the delay from a scheduled send
time (coordinated omission). Every reply is compared byte for byte and every latency is kept. Statistics are not
computed here.
"""

from __future__ import annotations

__all__ = ("Load", "LoadResult", "open_load")

from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from time import perf_counter_ns

from anyio import (
    BusyResourceError,
    CancelScope,
    ClosedResourceError,
    create_task_group,
    move_on_after,
)
from anyio.abc import SocketAttribute, TaskGroup

from anyecho.address import Address, UDPAddress, parse_address
from anyecho.client.client import Client, connect_checked
from anyecho.client.options import LoadOptions
from anyecho.client.unused import check_options
from anyecho.errors import EchoStalled, UsageError, unwrap_single
from anyecho.measure.closed_loop import PolledLoop, WaitingLoop
from anyecho.measure.load_run import LoadRun
from anyecho.net.poller import Fallback, Poller, open_poller
from anyecho.units import format_duration, or_infinite
from anyecho.validation import check_kind

#: Concurrent connection attempts; more would only wait in the server's accept backlog.
_CONNECTING = 32


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """The result of one run: `echoes` replies, each complete and equal."""

    echoes: int
    #: Payload bytes in one direction.
    bytes: int
    #: From the first send to the last reply, a little more than the `seconds` of the run.
    seconds: float
    #: Nanoseconds of every echo, in order of return: from before its send(2) to after its comparison. Includes the
    #: time a reply waits while the load processes earlier ones.
    latencies: array[int]


@asynccontextmanager
async def open_load(
    address: str | Address, options: LoadOptions | None = None, *, poller: Poller | Fallback | None = None
) -> AsyncIterator[Load]:
    """Open all connections of a load to `address` before the block, and close them after it.

    Loads that run concurrently share a `poller`. After an error or a cancellation, no connection stays open.

    Raises:
        AddressError: `address` is not an address.
        UsageError: `options` are not `LoadOptions`; a protective option has no effect on `address`; or `address` is
            over TLS, for datagrams (one that is lost would stop its closed loop) or a descriptor.
        ConnectError: a connection is not accepted within the limits of `options.connect`.
        StartError: no descriptor is left for epoll.
    """
    address = parse_address(address)
    if isinstance(address, UDPAddress):
        raise UsageError(f"a load needs a stream: {address} is none")
    if address.tls:
        raise UsageError(f"cannot load {address}: a load does not support TLS yet")
    if poller is None:
        with unwrap_single() as whole:
            async with open_poller() as poller:
                try:
                    async with open_load(address, options, poller=poller) as load:
                        yield load
                except BaseException as exc:
                    whole.append(exc)
                    raise
        return

    options = LoadOptions() if options is None else options
    check_kind(options, LoadOptions)
    check_options(options.connect, address)
    load = Load(await _connect_all(address, options), options, poller)
    try:
        yield load
    finally:
        await load.aclose()


async def _connect_all(address: Address, options: LoadOptions) -> list[Client]:
    clients: list[Client] = []
    numbers = iter(range(options.connections))

    async def connect_some() -> None:
        for _ in numbers:
            # Without the load's poller: a socket has one registration there, and `PolledLoop` makes it.
            clients.append(await connect_checked(address, options.connect))

    try:
        with unwrap_single():
            async with create_task_group() as tasks:
                for _ in range(min(options.connections, _CONNECTING)):
                    tasks.start_soon(connect_some)
    except BaseException:
        await _close_all(clients)
        raise

    return clients


async def _close_all(clients: Sequence[Client]) -> None:
    with CancelScope(shield=True):
        for client in clients:
            await client.aclose()


class Load:
    """Connections to one server, for one run at a time. `open_load` opens and closes it."""

    def __init__(self, clients: Sequence[Client], options: LoadOptions, poller: Poller | Fallback) -> None:
        self._clients = clients
        self._options = options
        self._poller = poller
        self._load_run = LoadRun()
        self._running = False
        self._closed = False
        # Each message is a slice of these bytes, one byte further on than the previous one. So the messages differ,
        # and a thousand messages of 1 MiB take no more memory than one.
        self._payload = memoryview(Random(options.size).randbytes(options.size + 2 * len(clients)))
        self._loops = [self._loop(client, number) for number, client in enumerate(clients)]

    def _loop(self, client: Client, number: int) -> PolledLoop | WaitingLoop:
        sock = client.stream.extra(SocketAttribute.raw_socket)
        size = self._options.size
        one, other = (self._payload[start : start + size] for start in (2 * number, 2 * number + 1))
        name = f"connection {number}"
        if isinstance(self._poller, Poller):
            return PolledLoop(sock, (one, other), name, self._load_run, self._poller)

        return WaitingLoop(sock, (one, other), name, self._load_run, self._poller.register(sock))

    async def run(self, *, seconds: float) -> LoadResult:
        """Send on all connections for `seconds`, then wait for the outstanding replies.

        For a warm-up, discard the result of a first run. An error of a run, or a cancellation, closes the load.

        Raises:
            UsageError: `seconds` is not more than 0; the load stays usable.
            BusyResourceError: another run is running, which continues.
            ClosedResourceError: the load is closed.
            EchoMismatch: a byte of a reply differs, or was never sent.
            EchoTruncated: a connection ended before its reply was complete.
            EchoStalled: outstanding replies did not come within `timeout` seconds after the end of the run.
        """
        if not seconds > 0:
            raise UsageError(f"seconds must be more than 0, not {seconds}")
        if self._running:
            raise BusyResourceError("running")
        if self._closed:
            raise ClosedResourceError

        self._running = True
        try:
            with unwrap_single():
                async with create_task_group() as tasks:
                    result = await self._run(seconds, tasks)
                    tasks.cancel_scope.cancel()
        except BaseException:
            await self.aclose()
            raise
        finally:
            self._running = False

        return result

    async def _run(self, seconds: float, tasks: TaskGroup) -> LoadResult:
        started_at = perf_counter_ns()
        latencies = self._load_run.begin(len(self._loops), deadline=started_at + int(seconds * 1e9))
        if self._load_run.failure is None:  # it may have failed since the last run
            for loop in self._loops:
                if isinstance(loop, WaitingLoop):
                    loop.start_reading(tasks)
                loop.start()

            with move_on_after(seconds + or_infinite(self._options.connect.timeout)):
                await self._load_run.finished.wait()

        if self._load_run.failure is not None:
            raise self._load_run.failure
        if self._load_run.outstanding:
            raise self._stalled()

        return LoadResult(
            echoes=len(latencies),
            bytes=len(latencies) * self._options.size,
            seconds=(self._load_run.finished_at - started_at) / 1e9,
            latencies=latencies,
        )

    def _stalled(self) -> EchoStalled:
        late = next(loop for loop in self._loops if loop.returned < self._options.size)
        timeout = format_duration(or_infinite(self._options.connect.timeout))
        message = f"{late.name}: byte {late.returned} is missing {timeout} after the last message could be sent"
        return EchoStalled(message, offset=late.returned)

    async def aclose(self) -> None:
        """Close the connections, without waiting for outstanding replies. Idempotent."""
        self._closed = True
        for loop in self._loops:
            loop.stop()
        await _close_all(self._clients)
