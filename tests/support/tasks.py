"""Tasks of the event loop under test."""

from __future__ import annotations

__all__ = ("wait_all_tasks_blocked",)

import anyio
from anyio.lowlevel import checkpoint

#: Passes of the loop in which tasks may begin to wait.
_PASSES = 5


async def wait_all_tasks_blocked() -> None:
    """As in anyio, which on asyncio sleeps for 0.1 s if a task is not blocked yet. Most are a few passes later."""
    for _ in range(_PASSES):
        await checkpoint()
    await anyio.wait_all_tasks_blocked()
