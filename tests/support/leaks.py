"""What a test must not leave behind: descriptors, tasks and connections."""

from __future__ import annotations

__all__ = ("live_connections", "nothing_left_behind")

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import get_running_tasks, to_thread

from anyecho.server.connection import Connection
from tests.support.process import descriptors


def live_connections() -> int:
    return sum(isinstance(each, Connection) for each in gc.get_objects())


@asynccontextmanager
async def nothing_left_behind() -> AsyncIterator[None]:
    """Check that the block leaks no descriptor and no task."""
    await to_thread.run_sync(int)  # the worker thread, and what the event loop opens for it, stay open
    gc.collect()
    before = descriptors(), len(get_running_tasks())
    yield
    gc.collect()
    assert (descriptors(), len(get_running_tasks())) == before
