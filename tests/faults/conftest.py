"""Fixtures of the tests of faults."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from anyio import create_task_group
from anyio.abc import TaskGroup

from anyecho.faults.fault import Direction
from tests.faults.line import DIRECTIONS


@pytest.fixture(params=DIRECTIONS)
def direction(request: pytest.FixtureRequest) -> Direction:
    found: Direction = request.param
    return found


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    """A group that is cancelled at the end of the test."""
    async with create_task_group() as tasks:
        yield tasks
        tasks.cancel_scope.cancel()
