"""What scenarios have in common: callers good and bad, and what is looked at afterwards."""

from __future__ import annotations

__all__ = (
    "SLACK",
    "TCP",
    "Engine",
    "dialled",
    "engines",
    "late",
    "logged",
    "milliseconds",
    "neighbour",
    "nothing_left_behind",
    "percentile",
    "served_in",
    "unix",
)

import gc
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from socket import socket
from typing import Literal, TypeAlias

import anyio
from anyio import create_task_group, get_running_tasks

from anyecho.address import Address, UnixAddress
from anyecho.measure.client import connect
from anyecho.measure.options import ConnectOptions
from anyecho.net import poller
from tests.faults.table import Scene
from tests.peers import SOON, dial, until
from tests.process import descriptors

TCP = "tcp://127.0.0.1:0"
#: What a promised figure may become on a busy machine; for times there is `late`.
SLACK = 3

Engine: TypeAlias = Literal["tasks", "events"]


def engines() -> Sequence[Engine]:
    """The engines that there are here."""
    return ("tasks", "events") if poller.has_epoll() else ("tasks",)


def unix(scene: Scene, name: str = "echo") -> UnixAddress:
    return UnixAddress(path=str(scene.directory / name))


def late(promised: float) -> float:
    """Return how many seconds a promised time may become on a busy machine.

    A neighbour on every core adds to a time rather than multiplies it. ``python -m tests.faults`` prints the time.
    """
    return promised + SOON


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


async def served_in(address: Address, options: ConnectOptions | None = None) -> float:
    """Seconds in which a new client has connected and got its echo."""
    start = time.monotonic()
    async with await connect(address, options=options) as client:
        await client.exchange(b"good")
    return time.monotonic() - start


@asynccontextmanager
async def neighbour(address: Address, options: ConnectOptions | None = None) -> AsyncIterator[list[float]]:
    """A good client that is there all the while; how long each of its exchanges took."""
    took: list[float] = []

    async def chat() -> None:
        while True:
            start = time.monotonic()
            await client.exchange(b"x" * 100)
            took.append(time.monotonic() - start)
            await anyio.sleep(0.002)

    async with await connect(address, options=options) as client, create_task_group() as tasks:
        tasks.start_soon(chat)
        await until(lambda: len(took) > 0)
        yield took
        # The last exchange begins after all that was done.
        count = len(took)
        await until(lambda: len(took) > count + 1)
        tasks.cancel_scope.cancel()


@contextmanager
def dialled(address: Address, count: int) -> Iterator[list[socket]]:
    """So many plain blocking sockets, connected."""
    with ExitStack() as opened:
        yield [opened.enter_context(dial(address)) for _ in range(count)]


@contextmanager
def logged(level: int = logging.WARNING) -> Iterator[list[logging.LogRecord]]:
    """What is logged within the block, at the default level."""
    handler = _Recorder(level)
    logging.getLogger().addHandler(handler)
    try:
        yield handler.records
    finally:
        logging.getLogger().removeHandler(handler)


class _Recorder(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@asynccontextmanager
async def nothing_left_behind() -> AsyncIterator[None]:
    """As many descriptors and tasks are there after the block as before it."""
    await anyio.to_thread.run_sync(int)  # the thread, and what an event loop opens for it, stay
    gc.collect()
    before = descriptors(), len(get_running_tasks())
    yield
    gc.collect()
    assert (descriptors(), len(get_running_tasks())) == before
