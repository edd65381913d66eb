"""An event loop that is blocked for longer than a limit."""

from __future__ import annotations

__all__ = ("LIMIT", "block_loop", "block_loop_while")

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import anyio
from anyio import to_thread

T = TypeVar("T")

LIMIT = 0.4
#: Seconds for which the loop is blocked: longer than any limit here.
BLOCKED = 2 * LIMIT


async def block_loop(sock: socket.socket, data: bytes, *, after: float) -> None:
    """Run the loop for the part `after` of the limit, then block it beyond the limit; `data` arrives meanwhile."""
    await anyio.sleep(after * LIMIT)
    timer = threading.Timer(0.1, sock.sendall, [data])
    timer.start()
    time.sleep(BLOCKED)  # noqa: ASYNC251 - what the test is about
    timer.join()


async def block_loop_while(call: Callable[[], T]) -> T:
    """Block the loop beyond the limit while a thread runs `call`; return its result."""
    with ThreadPoolExecutor(1) as executor:
        result = executor.submit(call)
        time.sleep(BLOCKED)  # noqa: ASYNC251 - what the test is about
        return await to_thread.run_sync(result.result)
