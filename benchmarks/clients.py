"""The cost of an exchange for a client: ``clients.py [ROUNDS [SIZE [EXCHANGES]]]``.

Each client sends SIZE bytes and receives their echo, in a closed loop. A server on the last core answers after 100
us, so that the client goes to sleep. The table has the client's user and system time for each exchange.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from multiprocessing.connection import Connection
from socket import IPPROTO_TCP, TCP_NODELAY, create_server
from typing import TypeAlias

import anyio

import anyecho
from anyecho.backends import Backend

Exchange: TypeAlias = Callable[[bytes], Awaitable[object]]

BACKENDS: tuple[Backend, ...] = ("asyncio", "uvloop", "trio")
CORES = sorted(os.sched_getaffinity(0))


def answer_late(ports: Connection) -> None:
    os.sched_setaffinity(0, CORES[-1:])
    with create_server(("127.0.0.1", 0)) as listener:
        ports.send(listener.getsockname()[1])
        sock, _ = listener.accept()
    with sock:
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        while message := sock.recv(65536):
            end = time.perf_counter() + 100e-6
            while time.perf_counter() < end:
                pass
            sock.sendall(message)


async def client_of_anyecho(port: int, opened: AsyncExitStack) -> Exchange:
    client = await opened.enter_async_context(await anyecho.connect(f"tcp://127.0.0.1:{port}"))
    return client.exchange


async def stream_of_anyio(port: int, opened: AsyncExitStack) -> Exchange:
    stream = await opened.enter_async_context(await anyio.connect_tcp("127.0.0.1", port))

    async def exchange(payload: bytes) -> None:
        await stream.send(payload)
        left = len(payload)
        while left:
            left -= len(await stream.receive())

    return exchange


async def streams_of_asyncio(port: int, opened: AsyncExitStack) -> Exchange:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    opened.callback(writer.close)

    async def exchange(payload: bytes) -> None:
        writer.write(payload)
        await writer.drain()
        await reader.readexactly(len(payload))

    return exchange


CLIENTS = {"anyecho": client_of_anyecho, "anyio": stream_of_anyio, "asyncio streams": streams_of_asyncio}


async def measure(name: str, port: int, payload: bytes, exchanges: int) -> float:
    """Return the microseconds of processor time for each exchange."""
    async with AsyncExitStack() as opened:
        exchange = await CLIENTS[name](port, opened)
        for _ in range(exchanges // 10):  # warm-up
            await exchange(payload)
        began = time.process_time()
        for _ in range(exchanges):
            await exchange(payload)
        return (time.process_time() - began) / exchanges * 1e6


def run_one(backend: Backend, name: str, size: int, exchanges: int) -> float:
    ports, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=answer_late, args=[theirs], daemon=True)
    server.start()
    try:
        return anyecho.run(partial(measure, name, ports.recv(), bytes(size), exchanges), backend=backend)
    finally:
        server.join()


def main() -> None:
    rounds, size, exchanges = (int(text) for text in (*sys.argv[1:], *("5", "64", "2000")[len(sys.argv) - 1 :]))
    os.sched_setaffinity(0, CORES[:1])
    cases = [
        (backend, name)
        for backend in BACKENDS
        for name in CLIENTS
        if (backend, name) != ("trio", "asyncio streams")
    ]
    costs: dict[tuple[Backend, str], list[float]] = defaultdict(list)
    for number in range(rounds):
        for case in cases[:: -1 if number % 2 else 1]:
            costs[case].append(run_one(*case, size, exchanges))

    print(f"| CPU us/exchange of {size} B |", *(f"{backend} |" for backend in BACKENDS))
    print("|---|", *("---: |" for _ in BACKENDS))
    for name in CLIENTS:
        cells = [costs.get((backend, name)) for backend in BACKENDS]
        print(
            f"| {name} |",
            *(f"{statistics.median(cell):.0f} ({min(cell):.0f}) |" if cell else "- |" for cell in cells),
        )


if __name__ == "__main__":
    main()
