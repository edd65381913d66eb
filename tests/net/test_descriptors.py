"""Reads and writes of descriptors whose O_NONBLOCK flag another process has set."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from itertools import count
from threading import Thread
from time import monotonic
from unittest.mock import Mock

import pytest

from anyecho.net.descriptors import read_some, write_all, write_some
from tests.support.peers import SOON
from tests.support.pipes import unread_pipe
from tests.support.process import TIMEOUT

#: More bytes than a pipe holds.
LARGE = os.urandom((1 << 20) + 7)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe, both non-blocking."""
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("timeout", [None, TIMEOUT])
def test_a_write_of_any_size_arrives_whole(pipe: tuple[int, int], timeout: float | None) -> None:
    read_end, write_end = pipe
    writing = Thread(target=write_all, args=(write_end, LARGE), kwargs={"timeout": timeout})
    writing.start()
    received = bytearray()
    while len(received) < len(LARGE):
        received += read_some(read_end, 65536)
    writing.join(TIMEOUT)

    assert received == LARGE
    assert not os.get_blocking(write_end), "the flag belongs to another process"


def test_a_read_returns_available_bytes_and_no_bytes_at_eof(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    received: list[bytes] = []
    reading = Thread(target=lambda: received.append(read_some(read_end, 65536)))
    reading.start()
    os.write(write_end, b"hello")
    reading.join(TIMEOUT)

    assert received == [b"hello"]

    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), write_end)
    assert read_some(read_end, 65536) == b""


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("timeout", [0.0, 0.1])
def test_a_write_without_room_within_its_timeout_raises_timeout_error(blocking: bool, timeout: float) -> None:
    with unread_pipe(blocking=blocking) as (_, write_end):
        began = monotonic()
        with pytest.raises(TimeoutError, match="its reader leaves no room for more"):
            write_all(write_end, b"hello", timeout=timeout)
        assert timeout <= monotonic() - began < timeout + SOON

        assert write_some(write_end, b"hello") == 0


def test_the_timeout_is_for_the_whole_write_also_if_no_attempt_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """select(2) reports room, and write(2) finds none. Each reading of the clock is a second later."""
    clock, waits = count(), list[float]()

    def report(_: list[int], ready: list[int], __: list[int], timeout: float) -> tuple[list[int], list[int]]:
        assert len(waits) < 9
        waits.append(timeout)
        return [], ready

    with monkeypatch.context() as patch:
        patch.setattr("anyecho.net.descriptors.monotonic", lambda: float(next(clock)))
        patch.setattr(select, "select", report)
        patch.setattr(os, "write", Mock(side_effect=BlockingIOError))
        with pytest.raises(TimeoutError):
            write_all(1, b"hello", timeout=5.0)
    assert waits == [4.0, 2.0, 0.0]


@pytest.mark.parametrize("blocking", [True, False])
def test_write_some_never_blocks(blocking: bool) -> None:
    with unread_pipe(blocking=blocking) as (read_end, write_end):
        room = len(os.read(read_end, 16384))

        assert write_some(write_end, bytes(1 << 20)) == room
        assert write_some(write_end, b"hello") == 0


def test_a_write_to_a_pipe_without_a_reader_raises_broken_pipe_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    for write in (write_all, write_some):
        with pytest.raises(BrokenPipeError):
            write(write_end, b"hello")
    os.close(write_end)
