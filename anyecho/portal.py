"""Calls into the event loop of another thread, from any thread: also from one that runs trio.

A portal of trio refuses a call from the thread of another trio, with the RuntimeError of one that has ended.
"""

from __future__ import annotations

__all__ = ("call_in", "start_in")

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVarTuple

from anyio.from_thread import BlockingPortal

Ts = TypeVarTuple("Ts")


def start_in(portal: BlockingPortal, call: Callable[[*Ts], object], *args: *Ts) -> Future[Any]:
    """Start the function or coroutine `call(*args)` in the event loop of `portal`.

    Raises `RuntimeError` if the loop has ended.
    """

    def start() -> Future[Any]:
        return portal.start_task_soon(call, *args)

    try:
        return start()
    except RuntimeError:
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(start).result()


def call_in(portal: BlockingPortal, call: Callable[[*Ts], object], *args: *Ts) -> None:
    """Call `call(*args)` there, and wait until it has ended. Raises its exception."""
    start_in(portal, call, *args).result()
