"""Log lines on a non-blocking standard error, and in a process that cannot start threads."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic

import pytest

from anyecho.cli import logs
from anyecho.cli.logs import LogOptions, log_to_stderr
from tests.support.peers import SOON
from tests.support.pipes import redirected, unread_pipe
from tests.support.process import TIMEOUT

WARNING = "main: no thread can be started to write the log (see ulimit -u and pids.max): the event loop writes it\n"


class NoThread(Thread):
    """A thread whose start fails, as under a limit of processes."""

    def start(self) -> None:
        raise RuntimeError("can't start new thread")


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "Thread", NoThread)


@pytest.fixture
def small_pipe() -> Iterator[tuple[int, int]]:
    """Yield both ends of a pipe of 4096 bytes, non-blocking for its writer."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(write_end, False)
    yield read_end, write_end
    os.close(read_end)
    os.close(write_end)


def warn(message: str) -> None:
    logging.getLogger("anyecho.server").warning(message)


@contextmanager
def reader(descriptor: int, begin: Event, *, until: str) -> Iterator[list[bytes]]:
    """Yield the chunks that a thread reads after `begin` is set, up to the line that contains `until`."""
    chunks: list[bytes] = []

    def read() -> None:
        assert begin.wait(TIMEOUT)
        while until.encode() not in b"".join(chunks[-2:]) or not chunks[-1].endswith(b"\n"):
            chunks.append(os.read(descriptor, 1 << 16))

    reading = Thread(target=read)
    reading.start()
    try:
        yield chunks
    finally:
        reading.join(TIMEOUT)


def test_a_non_blocking_standard_error_gets_every_line_whole(
    monkeypatch: pytest.MonkeyPatch, small_pipe: tuple[int, int]
) -> None:
    monkeypatch.setattr(logs, "_FLUSH_TIMEOUT", TIMEOUT)
    read_end, write_end = small_pipe
    lines = [f"{number} {'x' * 300}" for number in range(300)] + ["y" * 20_000, "last"]
    logged = Event()
    with redirected(2, write_end), reader(read_end, logged, until="last") as chunks, log_to_stderr(LogOptions()):
        for line in lines:
            warn(line)
        logged.set()

    assert b"".join(chunks).decode() == "".join(f"main: {line}\n" for line in lines)


@pytest.mark.usefixtures("no_thread")
def test_without_a_thread_every_line_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr(LogOptions()):
        for number in range(3):
            warn(str(number))
        assert capfd.readouterr().err == f"main: 0\n{WARNING}main: 1\nmain: 2\n"

    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("no_thread")
def test_without_a_thread_a_json_log_remains_json(capfd: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr(LogOptions(log_format="json")):
        warn("line")

    messages = [json.loads(line)["message"] for line in capfd.readouterr().err.splitlines()]
    assert messages == ["line", WARNING.removeprefix("main: ").rstrip("\n")]


@pytest.mark.usefixtures("no_thread")
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_without_a_thread_an_unread_pipe_blocks_neither_logging_nor_exit(
    monkeypatch: pytest.MonkeyPatch, blocking: bool
) -> None:
    monkeypatch.setattr(logs, "_QUEUE_SIZE", 5)
    monkeypatch.setattr(logs, "_FLUSH_TIMEOUT", 0.2)
    with unread_pipe(blocking=blocking) as (_, write_end), redirected(2, write_end), log_to_stderr(LogOptions()):
        for _ in range(100):
            warn("line")
        began = monotonic()

    assert monotonic() - began < 0.2 + SOON


@pytest.mark.usefixtures("no_thread")
def test_without_a_thread_lines_that_do_not_fit_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch, small_pipe: tuple[int, int]
) -> None:
    monkeypatch.setattr(logs, "_QUEUE_SIZE", 5)
    monkeypatch.setattr(logs, "_FLUSH_TIMEOUT", TIMEOUT)
    read_end, write_end = small_pipe
    logged = Event()
    with redirected(2, write_end), reader(read_end, logged, until="dropped") as chunks, log_to_stderr(LogOptions()):
        for _ in range(100):
            warn("x" * 1000)
        logged.set()

    *lines, last = b"".join(chunks).decode().splitlines()
    assert WARNING.rstrip("\n") in lines
    assert [line for line in lines if line != WARNING.rstrip("\n")] == [f"main: {'x' * 1000}"] * (len(lines) - 1)
    assert last == f"anyecho: {100 - (len(lines) - 1)} log lines were dropped: standard error did not accept them"


def test_a_thread_started_later_writes_the_queued_lines(
    monkeypatch: pytest.MonkeyPatch, small_pipe: tuple[int, int]
) -> None:
    monkeypatch.setattr(logs, "_RETRY_DELAY", 0.0)
    monkeypatch.setattr(logs, "_FLUSH_TIMEOUT", TIMEOUT)
    read_end, write_end = small_pipe
    logged = Event()
    with redirected(2, write_end), reader(read_end, logged, until="last") as chunks, log_to_stderr(LogOptions()):
        with monkeypatch.context() as limited:
            limited.setattr(logs, "Thread", NoThread)
            for _ in range(10):
                warn("x" * 1000)
        for _ in range(10):
            warn("x" * 1000)
        warn("last")
        logged.set()

    lines = b"".join(chunks).decode().replace(WARNING, "")
    assert lines == f"main: {'x' * 1000}\n" * 20 + "main: last\n"
