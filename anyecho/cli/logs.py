"""Log lines on standard error. They never block the service: what it does not accept is dropped and counted."""

from __future__ import annotations

__all__ = ("AccessLog", "LogOptions", "LogQueue", "log_to_stderr")

import logging
import queue
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import QueueHandler
from math import inf
from threading import Thread
from time import monotonic
from typing import Literal, TypeAlias

from anyecho.cli.log_formats import JSONFormatter, TextFormatter
from anyecho.net.descriptors import write_all, write_some
from anyecho.options import option, option_group

#: Lines kept while standard error is not read fast enough; further lines are dropped and counted.
_QUEUE_SIZE = 10_000
#: Seconds for which the exit waits until the kept lines are written.
_FLUSH_TIMEOUT = 1.0
#: Seconds between attempts to start a thread, after one has failed.
_RETRY_DELAY = 1.0

#: Whether closed connections are logged; "all": opened ones too.
AccessLog: TypeAlias = bool | Literal["all"]
#: Levels of the logger ``anyecho.access``. It logs closed connections at info, opened ones at debug.
_ACCESS_LEVELS = {False: logging.CRITICAL, True: logging.INFO, "all": logging.DEBUG}


@option_group("Logs")
@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Level and format of the log."""

    log_level: Literal["debug", "info", "warning", "error"] = option(
        "warning", "Lowest level logged; info has a line per connection, debug per chunk."
    )
    log_format: Literal["text", "json"] = option("text", "Format of the log lines.")


class LogQueue(QueueHandler):
    """Puts records into a bounded queue, from which a thread writes them.

    If no thread can be started, the caller writes without blocking. A line that standard error does not take stays
    in the queue until the next record, or until a thread can be started.
    """

    def __init__(self, form: logging.Formatter) -> None:
        self._lines: queue.Queue[logging.LogRecord | None] = queue.Queue(_QUEUE_SIZE)
        super().__init__(self._lines)
        self._form = form
        self._thread: Thread | None = None
        self._retry_at = -inf
        #: The unwritten end of a line that standard error took in part.
        self._rest = b""
        self._finishing = False
        #: Lines dropped because the queue was full, counted by the logging threads; and because a write failed,
        #: counted by the writing thread.
        self._overflowed = 0
        self._failed = 0
        #: Dropped lines that a line in the log has reported. While writes fail, there is no such line.
        self._reported = 0
        self._failing = False

    @property
    def dropped_lines(self) -> int:
        """Lines that standard error has not accepted: it was full for too long, closed, or its disk was full."""
        return self._overflowed + self._failed

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self._overflowed += 1
        # Started with the first line only: with a second thread, every system call on a descriptor costs more.
        if self._thread is None and not self._start_thread():
            self._write_without_blocking()

    def finish(self, timeout: float) -> None:
        """Write the queue, then the number of dropped lines. Gives up after `timeout` seconds."""
        if self._thread is not None:
            self._finishing = True
            with suppress(queue.Full):
                self._lines.put_nowait(None)
            self._thread.join(timeout)
            return

        deadline = monotonic() + timeout
        line = self._rest or self._next_line()
        while line:
            self._write(line, timeout=max(deadline - monotonic(), 0.0))
            line = self._next_line()

    def _start_thread(self) -> bool:
        if monotonic() < self._retry_at:
            return False

        thread = Thread(target=self._write_lines, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # a limit of the system (ulimit -u, pids.max)
            if self._retry_at == -inf:
                self._warn()
            self._retry_at = monotonic() + _RETRY_DELAY
            return False

        self._thread = thread
        return True

    def _warn(self) -> None:
        text = "no thread can be started to write the log (see ulimit -u and pids.max): the event loop writes it"
        with suppress(queue.Full):
            self._lines.put_nowait(_warning("anyecho.server", text))

    def _write_lines(self) -> None:
        """In the thread: write lines until `finish` is called. It puts None, which ends a wait."""
        self._write(self._rest)
        while not (self._finishing and self._lines.empty()):
            self._write(self._line(self._lines.get()))
            if self._lines.empty():
                self._report_dropped()

    def _write_without_blocking(self) -> None:
        while line := self._rest or self._next_line():
            try:
                written = write_some(2, line)
                self._failing = False
            except OSError:
                self._count_failure()
                written = len(line)
            self._rest = line[written:]
            if self._rest:
                return

    def _next_line(self) -> bytes:
        """Return the next line of the queue, at its end the notice of dropped lines; empty if there is neither."""
        with suppress(queue.Empty):
            return self._line(self._lines.get_nowait())

        return self._notice()

    def _line(self, record: logging.LogRecord | None) -> bytes:
        return b"" if record is None else (self._form.format(record) + "\n").encode(errors="backslashreplace")

    def _notice(self) -> bytes:
        """Return a line with the number of lines dropped since the last one; empty if there are none."""
        dropped = self.dropped_lines
        if self._failing or dropped == self._reported:
            return b""

        text = f"{dropped - self._reported} log lines were dropped: standard error did not accept them"
        self._reported = dropped
        return self._line(_warning("anyecho", text))

    def _report_dropped(self) -> None:
        reported = self._reported
        self._write(self._notice())
        if self._failing:
            self._reported = reported

    def _write(self, line: bytes, *, timeout: float | None = None) -> None:
        if not line:
            return

        try:
            write_all(2, line, timeout=timeout)
            self._failing = False
        except OSError:
            self._count_failure()

    def _count_failure(self) -> None:
        """Count a line that could not be written: standard error is closed, or its disk is full."""
        self._failed += 1
        self._failing = True


def _warning(logger: str, text: str) -> logging.LogRecord:
    return logging.LogRecord(logger, logging.WARNING, __file__, 0, text, None, None)


@contextmanager
def log_to_stderr(
    options: LogOptions, *, access: AccessLog = False, worker: int | None = None
) -> Iterator[LogQueue]:
    """Log to standard error within the block; with `access`, a line per closed connection at any level.

    Text lines have time and level if there is an access log. Each line has the number `worker`, if there is one.
    """
    text = TextFormatter(timed=access is not False, worker=worker)
    lines = LogQueue(JSONFormatter(worker=worker) if options.log_format == "json" else text)
    root, ours, closes = (logging.getLogger(name) for name in (None, "anyecho", "anyecho.access"))
    levels = ours.level, closes.level
    ours.setLevel(options.log_level.upper())
    closes.setLevel(_ACCESS_LEVELS[access])
    root.addHandler(lines)
    try:
        yield lines
    finally:
        root.removeHandler(lines)
        ours.setLevel(levels[0])
        closes.setLevel(levels[1])
        lines.finish(_FLUSH_TIMEOUT)
