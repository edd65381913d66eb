"""Counts that processes share: rows, flags, and the least count of the others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from anyecho.net.shared_counts import Row, SharedCounts


@pytest.fixture(params=["memfd", "file"])
def counts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedCounts]:
    if request.param == "file":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    counts = SharedCounts.create(3)
    yield counts
    counts.close()


def rows(counts: SharedCounts) -> list[Row]:
    taken = [counts.take_row() for _ in range(3)]
    return [row for row in taken if row is not None]


def test_the_least_count_is_that_of_the_other_active_rows(counts: SharedCounts) -> None:
    first, second, third = rows(counts)
    for row, count in ((first, 3), (second, 5), (third, 0)):
        row.publish(count)
    assert first.least_other() is None
    first.activate()
    assert first.least_other() is None
    second.activate()
    assert (first.least_other(), second.least_other(), third.least_other()) == (5, 3, None)
    third.activate()
    assert (first.least_other(), second.least_other(), third.least_other()) == (0, 0, 3)
    third.deactivate()
    assert first.least_other() == 5


def test_a_row_is_free_again_when_it_is_given_back(counts: SharedCounts) -> None:
    first, _, _ = rows(counts)
    assert counts.take_row() is None
    first.activate()
    first.publish(9)
    counts.give_back(first)
    again = counts.take_row()
    assert again is not None
    assert again.number == first.number
    again.activate()
    other = Row(counts, (first.number + 1) % 3)
    other.activate()
    assert other.least_other() == 0


def test_another_process_reads_and_writes_the_rows(counts: SharedCounts) -> None:
    first, second, _ = rows(counts)
    first.activate()
    second.activate()
    first.publish(7)
    program = (
        "from anyecho.net.shared_counts import Row, SharedCounts\n"
        f"row = Row(SharedCounts({counts.descriptor}, 3), {second.number})\n"
        "row.publish(9)\n"
        "print(row.least_other())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], pass_fds=[counts.descriptor], capture_output=True, check=True
    )
    assert run.stdout == b"7\n"
    assert first.least_other() == 9
