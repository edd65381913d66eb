"""Log lines on standard error, as text or JSON, that never block the service.

`TextFormatter` writes ``echo_::1_64624: received b'hello'`` for a record with a ``peer``. No logger is created per
connection: `logging` never frees a logger.
"""

from __future__ import annotations

__all__ = ("JSONFormatter", "LogOptions", "TextFormatter", "log_to_stderr")

import json
import logging
import queue
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import QueueHandler
from math import inf
from threading import Thread
from time import monotonic
from typing import Literal

from anyecho.net.descriptors import write_all, write_some
from anyecho.options import in_group, option

#: Lines kept while standard error is not read fast enough; further lines are dropped and counted.
_QUEUE_SIZE = 10_000
#: Seconds for which the exit waits until the kept lines are written.
_FLUSH_TIMEOUT = 1.0
#: Seconds between attempts to start a thread, after one has failed.
_RETRY_DELAY = 1.0

_PREFIXES = {"anyecho.server": "main", "anyecho.client": "echo_client", "anyecho.access": "access"}
_FIELDS = ("peer", "via", "reason", "bytes_received", "bytes_sent", "seconds")


@in_group("Logs")
@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Level and format of the log."""

    log_level: Literal["debug", "info", "warning", "error"] = option(
        "warning", "Lowest level logged; info has a line per connection, debug per chunk."
    )
    log_format: Literal["text", "json"] = option("text", "Format of the log lines.")


class TextFormatter(logging.Formatter):
    """``prefix: message``."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = _PREFIXES.get(record.name, record.name)
        fields = {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.name == "anyecho.server" and "peer" in fields:
            return f"echo_{fields['peer']}: {record.getMessage()}"

        pairs = [f"{name}={value}" for name, value in fields.items()]
        return " ".join([f"{prefix}: {record.getMessage()}", *pairs])


class JSONFormatter(logging.Formatter):
    """One object per line: time (UTC), level, logger, message, and the fields of the connection."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        head = {"time": time, "level": record.levelname.lower(), "logger": record.name}
        return json.dumps(head | {"message": record.getMessage()} | fields)


class _BoundedQueueHandler(QueueHandler):
    """Puts records into a bounded queue, from which a thread writes them; drops and counts records over the bound.

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
        self._dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self._dropped += 1
        # Started with the first line only: with a second thread, every system call on a descriptor costs more.
        if self._thread is None and not self._start_thread():
            self._write_without_blocking()

    def finish(self, timeout: float) -> None:
        """Write the queue, then the number of dropped lines. Gives up after `timeout` seconds."""
        if self._thread is None:
            self._end_lines(timeout)
            return

        deadline = monotonic() + timeout
        self._finishing = True
        with suppress(queue.Full):
            self._lines.put(None, timeout=timeout)
        self._thread.join(max(deadline - monotonic(), 0.0))

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
            self._lines.put_nowait(
                logging.LogRecord("anyecho.server", logging.WARNING, __file__, 0, text, None, None)
            )

    def _write_lines(self) -> None:
        """In the thread: write lines until `finish` puts None into the queue."""
        self._write(self._rest)
        while (record := self._lines.get()) is not None:
            self._write(self._line(record))
            # `finish` could not put None if the queue was full.
            if self._finishing and self._lines.empty():
                break

        self._write(self._dropped_notice())

    def _write_without_blocking(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._rest = self._rest or self._line(self._lines.get_nowait())
                try:
                    written = write_some(2, self._rest)
                except OSError:
                    written = len(self._rest)
                self._rest = self._rest[written:]
                if self._rest:
                    return

    def _end_lines(self, timeout: float) -> None:
        deadline = monotonic() + timeout
        lines = [self._rest]
        with suppress(queue.Empty):
            while True:
                lines.append(self._line(self._lines.get_nowait()))
        for line in (*lines, self._dropped_notice()):
            self._write(line, timeout=max(deadline - monotonic(), 0.0))

    def _line(self, record: logging.LogRecord | None) -> bytes:
        return b"" if record is None else (self._form.format(record) + "\n").encode(errors="backslashreplace")

    def _dropped_notice(self) -> bytes:
        if not self._dropped:
            return b""

        return f"anyecho: {self._dropped} log lines were dropped: standard error was not read in time\n".encode()

    def _write(self, line: bytes, *, timeout: float | None = None) -> None:
        with suppress(OSError):  # standard error is closed or its disk full, and is the only place to report it
            write_all(2, line, timeout=timeout)


@contextmanager
def log_to_stderr(options: LogOptions, *, access: bool = False) -> Iterator[None]:
    """Log to standard error within the block; with `access`, a line per closed connection at any level."""
    handler = _BoundedQueueHandler(JSONFormatter() if options.log_format == "json" else TextFormatter())
    root, ours, closes = (logging.getLogger(name) for name in (None, "anyecho", "anyecho.access"))
    levels = ours.level, closes.level
    ours.setLevel(options.log_level.upper())
    closes.setLevel(logging.INFO if access else logging.CRITICAL)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        ours.setLevel(levels[0])
        closes.setLevel(levels[1])
        handler.finish(_FLUSH_TIMEOUT)
