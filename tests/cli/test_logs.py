"""Log lines: formats, levels, and what happens if standard error is not read."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import QueueHandler
from queue import Queue
from threading import Event, Thread, active_count
from time import monotonic, sleep
from typing import Any

import pytest

from anyecho.cli import logs
from anyecho.cli.log_formats import JSONFormatter, TextFormatter
from anyecho.cli.logs import AccessLog, LogOptions, log_to_stderr
from tests.support.peers import SOON
from tests.support.pipes import redirected, unread_pipe
from tests.support.process import TIMEOUT, wait_until

PEER = {"peer": "::1_64624"}
FIELDS = PEER | {"reason": "eof", "bytes_received": 5, "bytes_sent": 4, "seconds": 0.25}


def record(name: str, message: str, *args: object, **fields: Any) -> logging.LogRecord:
    """Return a record as the logger `name` makes it, with `fields` as ``extra``."""
    return logging.getLogger(name).makeRecord(name, logging.INFO, "file", 1, message, args, None, extra=fields)


@pytest.mark.parametrize(
    ("name", "message", "line"),
    [
        ("anyecho.server", "starting up on localhost port 10000", "main: starting up on localhost port 10000"),
        ("anyecho.client", "waiting for response", "echo_client: waiting for response"),
        ("asyncio", "of another library", "asyncio: of another library"),
    ],
)
def test_a_text_line_begins_with_the_prefix_of_its_logger(name: str, message: str, line: str) -> None:
    assert TextFormatter().format(record(name, message)) == line


def test_a_line_about_a_connection_begins_with_its_peer() -> None:
    line = TextFormatter().format(record("anyecho.server", "received %s", "b'hello'", **PEER))

    assert line == "echo_::1_64624: received b'hello'"


def test_an_access_log_line_has_the_fields_of_the_connection() -> None:
    line = TextFormatter().format(record("anyecho.access", "closed", **FIELDS))

    assert line == "access: closed peer=::1_64624 reason=eof bytes_received=5 bytes_sent=4 seconds=0.25"


def test_a_json_line_has_the_same_fields_as_values() -> None:
    made = record("anyecho.access", "closed", **FIELDS)
    parsed = json.loads(JSONFormatter().format(made))

    head = {"level": "info", "logger": "anyecho.access", "message": "closed"}
    assert parsed.items() >= (head | FIELDS).items()
    assert parsed.keys() == {"time", *head, *FIELDS}


@pytest.mark.parametrize("timed", [False, True])
def test_a_line_of_a_worker_has_its_number(timed: bool) -> None:
    made = record("anyecho.server", "received %s", "b'hello'", **PEER)
    line = TextFormatter(timed=timed, worker=2).format(made)

    assert line[line.index("worker") :] == "worker 2: echo_::1_64624: received b'hello'"
    assert json.loads(JSONFormatter(worker=2).format(made))["worker"] == 2


def test_the_time_of_a_json_line_is_utc() -> None:
    made = record("anyecho.server", "closing server")
    time = datetime.fromisoformat(json.loads(JSONFormatter().format(made))["time"])

    assert time.tzinfo == UTC
    assert abs(time.timestamp() - made.created) < 0.001


def test_a_json_line_stays_one_line_whatever_the_message_holds() -> None:
    message = 'a "quoted"\nsecond line \u2028 \udcff'
    line = JSONFormatter().format(record("anyecho.server", message))

    assert len(line.splitlines()) == 1
    assert json.loads(line)["message"] == message


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_bug_is_logged_with_its_traceback(capfd: pytest.CaptureFixture[str], log_format: Any) -> None:
    with log_to_stderr(LogOptions(log_format=log_format)):
        try:
            raise RuntimeError("a bug")
        except RuntimeError:
            logging.getLogger("anyecho.server").exception("connection failed", extra=PEER)

    errors = capfd.readouterr().err
    text = json.loads(errors)["message"] if log_format == "json" else errors
    assert "connection failed\nTraceback (most recent call last):" in text
    assert "RuntimeError: a bug" in text


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", "main: a\nmain: b\nmain: c\nmain: d\n"),
        ("info", "main: b\nmain: c\nmain: d\n"),
        ("warning", "main: c\nmain: d\n"),
        ("error", "main: d\n"),
    ],
)
def test_a_level_includes_higher_levels(capfd: pytest.CaptureFixture[str], level: Any, shown: str) -> None:
    server = logging.getLogger("anyecho.server")
    with log_to_stderr(LogOptions(log_level=level)):
        server.debug("a")
        server.info("b")
        server.warning("c")
        server.error("d")

    assert capfd.readouterr() == ("", shown)


@pytest.mark.parametrize(
    ("access", "shown"), [("all", ["debug opened", "info closed"]), (True, ["info closed"]), (False, [])]
)
@pytest.mark.parametrize("level", ["debug", "error"])
def test_the_access_log_is_independent_of_the_level(
    capfd: pytest.CaptureFixture[str], level: Any, access: AccessLog, shown: list[str]
) -> None:
    with log_to_stderr(LogOptions(log_level=level), access=access):
        logging.getLogger("anyecho.access").debug("opened")
        logging.getLogger("anyecho.access").info("closed")

    lines = capfd.readouterr().err.replace("access: ", "").splitlines()
    assert [line.partition(" ")[2] for line in lines] == shown


def test_a_text_line_beside_an_access_log_has_time_and_level() -> None:
    made = record("anyecho.server", "received %s", "b'hello'", **PEER)
    time, _, rest = TextFormatter(timed=True).format(made).partition(" ")

    assert abs(datetime.fromisoformat(time).timestamp() - made.created) < 0.001
    assert rest == "info echo_::1_64624: received b'hello'"


@pytest.mark.parametrize("sni", ["a b", 'a"b', "a\nreason=eof", "", "\x1b[31m", "\u2028"])
def test_a_field_that_the_peer_chooses_stays_one_word_or_quoted(sni: str) -> None:
    line = TextFormatter().format(record("anyecho.access", "closed", sni=sni, reason="eof"))

    assert line == f"access: closed sni={json.dumps(sni)} reason=eof"
    assert line.isprintable()


def test_levels_handlers_and_threads_are_restored_after_the_block() -> None:
    def state() -> tuple[Any, ...]:
        loggers = [logging.getLogger(name) for name in (None, "anyecho", "anyecho.access", "anyecho.server")]
        return [(each.level, list(each.handlers)) for each in loggers], active_count()

    before = state()
    with pytest.raises(RuntimeError), log_to_stderr(LogOptions(log_level="debug"), access=True):
        assert state() != before
        raise RuntimeError

    assert state() == before


def test_all_lines_are_written_when_the_block_ends(capfd: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr(LogOptions()):
        for number in range(1000):
            logging.getLogger("anyecho.server").warning("%d", number)

    assert capfd.readouterr().err == "".join(f"main: {number}\n" for number in range(1000))


def log(count: int) -> None:
    for _ in range(count):
        logging.getLogger("anyecho.server").warning("line")


def flood(count: int) -> None:
    """Log `count` lines; the write of the first blocks before the others are logged."""
    log(1)
    [handler] = [each for each in logging.getLogger().handlers if isinstance(each, QueueHandler)]
    assert isinstance(handler.queue, Queue)
    wait_until(handler.queue.empty)
    log(count - 1)


def written_and_dropped(text: str) -> tuple[int, int]:
    """Return how many lines of `log` were written, and how many dropped."""
    dropped = re.search(r"^anyecho: (\d+) log lines were dropped: .*\n\Z", text, re.M)
    return len(re.findall(r"^main: line$", text, re.M)), int(dropped[1]) if dropped else 0


@contextmanager
def reader(descriptor: int, begin: Event, *, late: float = 0) -> Iterator[list[bytes]]:
    """Yield the chunks that a thread reads after `begin` is set, up to the notice of dropped lines."""
    chunks: list[bytes] = []

    def read() -> None:
        assert begin.wait(TIMEOUT)
        sleep(late)
        while b"dropped" not in b"".join(chunks[-2:]):
            chunks.append(os.read(descriptor, 1 << 20))

    reading = Thread(target=read)
    reading.start()
    try:
        yield chunks
    finally:
        reading.join(TIMEOUT)


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_lines_over_the_queue_size_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch, blocking: bool) -> None:
    monkeypatch.setattr(logs, "_QUEUE_SIZE", 5)
    logged = Event()
    with unread_pipe(blocking=blocking) as (read_end, write_end), redirected(2, write_end):
        with reader(read_end, logged) as chunks, log_to_stderr(LogOptions()):
            flood(100)
            logged.set()
            # Then the queue has room at the end of the block.
            wait_until(lambda: b"".join(chunks).count(b"main: line") >= 5)

        assert written_and_dropped(b"".join(chunks).decode()) == (6, 94)


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_the_end_of_the_block_waits_for_a_full_queue(monkeypatch: pytest.MonkeyPatch, blocking: bool) -> None:
    monkeypatch.setattr(logs, "_QUEUE_SIZE", 5)
    threads = active_count()
    logged = Event()
    with unread_pipe(blocking=blocking) as (read_end, write_end), redirected(2, write_end):
        # During the end of the block, well within the flush timeout.
        with reader(read_end, logged, late=0.1) as chunks, log_to_stderr(LogOptions()):
            flood(100)
            logged.set()

        assert written_and_dropped(b"".join(chunks).decode()) == (6, 94)

    wait_until(lambda: active_count() == threads)


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_the_end_of_the_block_waits_no_longer_than_the_flush_timeout(
    monkeypatch: pytest.MonkeyPatch, blocking: bool
) -> None:
    monkeypatch.setattr(logs, "_FLUSH_TIMEOUT", 0.2)
    threads = active_count()
    with unread_pipe(blocking=blocking) as (_, write_end), redirected(2, write_end), log_to_stderr(LogOptions()):
        log(3)
        began = monotonic()

    assert 0.2 <= monotonic() - began < 0.2 + SOON
    # Closing the pipe unblocks the writing thread.
    wait_until(lambda: active_count() == threads)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_full_standard_error_is_ignored(log_format: Any) -> None:
    with (
        open("/dev/full", "wb") as full,
        redirected(2, full.fileno()),
        log_to_stderr(LogOptions(log_format=log_format)),
    ):
        log(3)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_lines_that_a_full_disk_refused_are_counted_once_it_has_room(
    capfd: pytest.CaptureFixture[str], log_format: Any
) -> None:
    with log_to_stderr(LogOptions(log_format=log_format)) as lines:
        with open("/dev/full", "wb") as full, redirected(2, full.fileno()):
            log(3)
            wait_until(lambda: lines.dropped_lines == 3)
        log(1)
        wait_until(lambda: lines.dropped_lines == lines._reported)

    line, notice = capfd.readouterr().err.splitlines()
    text = "3 log lines were dropped: standard error did not accept them"
    if log_format == "json":
        assert [json.loads(each)["message"] for each in (line, notice)] == ["line", text]
    else:
        assert (line, notice) == ("main: line", f"anyecho: {text}")


@pytest.mark.usefixtures("capfd")
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_lines_over_the_queue_size_are_counted_while_nothing_is_read(
    monkeypatch: pytest.MonkeyPatch, blocking: bool
) -> None:
    monkeypatch.setattr(logs, "_QUEUE_SIZE", 5)
    monkeypatch.setattr(logs, "_FLUSH_TIMEOUT", 0.0)
    threads = active_count()
    with (
        unread_pipe(blocking=blocking) as (_, write_end),
        redirected(2, write_end),
        log_to_stderr(LogOptions()) as lines,
    ):
        flood(100)
        assert lines.dropped_lines == 94

    wait_until(lambda: active_count() == threads)
