"""Helpers of scenarios: clients, limits, and checks for leaks."""

from __future__ import annotations

__all__ = (
    "SLACK",
    "TCP",
    "Engine",
    "dialled",
    "engines",
    "good_client",
    "logged",
    "milliseconds",
    "nothing_left_behind",
    "percentile",
    "served_in",
    "time_limit",
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
from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.net import poller
from tests.faults.table import Scene
from tests.support.peers import SOON, dial, until
from tests.support.process import descriptors

TCP = "tcp://127.0.0.1:0"
#: Factor by which a figure may exceed its requirement on a busy machine; for times, use `time_limit`.
SLACK = 3

Engine: TypeAlias = Literal["tasks", "events"]


def engines() -> Sequence[Engine]:
    """Return the engines that this system supports."""
    return ("tasks", "events") if poller.has_epoll() else ("tasks",)


def unix(scene: Scene, name: str = "echo") -> UnixAddress:
    return UnixAddress(path=str(scene.directory / name))


def time_limit(promised: float) -> float:
    """Return the limit for a required time on a busy machine.

    Load on every core adds to a time rather than multiplies it. ``python -m tests.faults`` prints the time.
    """
    return promised + SOON


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


async def served_in(address: Address, options: ConnectOptions | None = None) -> float:
    """Return the seconds that a new client needs to connect and get its echo."""
    start = time.monotonic()
    async with await connect(address, options=options) as client:
        await client.exchange(b"good")
    return time.monotonic() - start


@asynccontextmanager
async def good_client(address: Address, options: ConnectOptions | None = None) -> AsyncIterator[list[float]]:
    """Run a good client within the block; yield the durations of its exchanges."""
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
        # The last exchange begins after the block.
        count = len(took)
        await until(lambda: len(took) > count + 1)
        tasks.cancel_scope.cancel()


@contextmanager
def dialled(address: Address, count: int) -> Iterator[list[socket]]:
    """Yield `count` connected blocking sockets."""
    with ExitStack() as opened:
        yield [opened.enter_context(dial(address)) for _ in range(count)]


@contextmanager
def logged(level: int = logging.WARNING) -> Iterator[list[logging.LogRecord]]:
    """Yield the records logged within the block, at the default level."""
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
    """Check that the block leaks no descriptor and no task."""
    await anyio.to_thread.run_sync(int)  # the worker thread, and what the event loop opens for it, stay open
    gc.collect()
    before = descriptors(), len(get_running_tasks())
    yield
    gc.collect()
    assert (descriptors(), len(get_running_tasks())) == before
