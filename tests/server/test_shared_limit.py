"""The connection limit of a process beside others: new connections are left to the process with fewer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from anyio import move_on_after

from anyecho.net.shared_counts import Row, SharedCounts
from anyecho.server import limits
from anyecho.server.limits import SharedConnectionLimit


@pytest.fixture(autouse=True)
def engine() -> None:
    """A limit is the same for both engines."""


@pytest.fixture
def rows() -> Iterator[tuple[Row, Row]]:
    counts = SharedCounts.create(2)
    first, second = counts.take_row(), counts.take_row()
    assert first is not None
    assert second is not None
    first.activate()
    second.activate()
    yield first, second
    counts.close()


def test_a_process_with_more_connections_does_not_accept(rows: tuple[Row, Row]) -> None:
    own, other = rows
    limit = SharedConnectionLimit(10, own, wait=True)
    assert limit.may_accept()
    limit.acquire()
    assert not limit.may_accept()
    other.publish(1)
    assert limit.may_accept()
    limit.acquire()
    limit.release()
    assert limit.may_accept()


def test_a_process_that_does_not_accept_is_not_waited_for(rows: tuple[Row, Row]) -> None:
    own, other = rows
    limit = SharedConnectionLimit(10, own, wait=True)
    limit.acquire()
    other.deactivate()
    assert limit.may_accept()


def test_a_process_that_drains_takes_its_whole_backlog(rows: tuple[Row, Row]) -> None:
    own, _ = rows
    limit = SharedConnectionLimit(10, own, wait=True)
    limit.acquire()
    own.deactivate()
    assert limit.may_accept()


async def test_connections_are_accepted_if_the_other_process_is_busy(rows: tuple[Row, Row]) -> None:
    limit = SharedConnectionLimit(1000, rows[0], wait=True)
    limit.acquire()
    assert not limit.may_accept()
    await limit.wait_may_accept()
    accepted = 0
    while limit.may_accept():
        limit.acquire()
        accepted += 1
    assert accepted == limits._GRANT


async def test_the_limit_is_the_limit_for_a_process_with_fewer_connections(rows: tuple[Row, Row]) -> None:
    own, other = rows
    other.publish(5)
    limit = SharedConnectionLimit(1, own, wait=True)
    limit.acquire()
    assert not limit.may_accept()
    with move_on_after(0.05) as scope:
        await limit.wait_may_accept()
    assert scope.cancelled_caught
    limit.release()
    await limit.wait_may_accept()
    assert limit.may_accept()
