"""Log lines on standard error, as text or JSON, that never make the service wait.

The lines of the original example are only a matter of form: `TextFormatter` makes ``echo_::1_64624: received
b'hello'`` of a record that says who the peer is. No logger is ever made for a connection; they are never freed.
"""

from __future__ import annotations

__all__ = ("JSONFormatter", "LogOptions", "TextFormatter", "log_to_stderr")

import json
import logging
import queue
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging.handlers import QueueHandler
from math import inf
from threading import Thread
from time import monotonic
from typing import Literal

from anyecho.net.descriptors import write_all, write_some

#: Lines kept for a reader of standard error that is slow; more are dropped, and counted.
_QUEUE_SIZE = 10_000
#: How long the exit waits for such a reader.
_FLUSH_TIMEOUT = 1.0
#: How often to try for a thread where none can be started.
_RETRY_DELAY = 1.0

_SPEAKERS = {"anyecho.server": "main", "anyecho.client": "echo_client", "anyecho.access": "access"}
_FACTS = ("peer", "via", "reason", "bytes_received", "bytes_sent", "seconds")


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What is logged, and how."""

    log_level: Literal["debug", "info", "warning", "error"] = field(
        default="warning", metadata={"help": "How much is logged; info has a line per connection, debug per chunk."}
    )
    log_format: Literal["text", "json"] = field(default="text", metadata={"help": "How a log line looks."})


class TextFormatter(logging.Formatter):
    """``speaker: message``."""

    def format(self, record: logging.LogRecord) -> str:
        speaker = _SPEAKERS.get(record.name, record.name)
        facts = {name: getattr(record, name) for name in _FACTS if hasattr(record, name)}
        if record.name == "anyecho.server" and "peer" in facts:
            return f"echo_{facts['peer']}: {record.getMessage()}"

        return " ".join([f"{speaker}: {record.getMessage()}", *(f"{name}={fact}" for name, fact in facts.items())])


class JSONFormatter(logging.Formatter):
    """One object a line: time (UTC), level, logger, message, and what is known of the connection."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {name: getattr(record, name) for name in _FACTS if hasattr(record, name)}
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        head = {"time": time, "level": record.levelname.lower(), "logger": record.name}
        return json.dumps(head | {"message": record.getMessage()} | facts)


class _BoundedQueueHandler(QueueHandler):
    """Puts lines into a bounded queue, for a thread to write; drops and counts those that do not fit.

    Where no thread can be started, it writes what standard error takes without blocking, line by line, and leaves
    the rest in the queue for the next line or for a thread.
    """

    def __init__(self, form: logging.Formatter) -> None:
        self._lines: queue.Queue[logging.LogRecord | None] = queue.Queue(_QUEUE_SIZE)
        super().__init__(self._lines)
        self._form = form
        self._thread: Thread | None = None
        self._retry_at = -inf
        #: The end of a line of which standard error has taken the beginning.
        self._rest = b""
        self._finishing = False
        self._dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self._dropped += 1
        # Not before there is a line: in a process of two threads every system call on a descriptor costs more.
        if self._thread is None and not self._start_thread():
            self._write_without_blocking()

    def finish(self, timeout: float) -> None:
        """Write what is in the queue, and how many lines were dropped. Gives up after `timeout` seconds."""
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
        except RuntimeError:  # the system lets the process start none
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
        """In the thread: write lines as they come, until `finish` says that there are no more."""
        self._write(self._rest)
        while (record := self._lines.get()) is not None:
            self._write(self._line(record))
            # If the queue was full when they were no more, there is no None at its end.
            if self._finishing and self._lines.empty():
                break

        self._write(self._farewell())

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
        for line in (*lines, self._farewell()):
            self._write(line, timeout=max(deadline - monotonic(), 0.0))

    def _line(self, record: logging.LogRecord | None) -> bytes:
        return b"" if record is None else (self._form.format(record) + "\n").encode(errors="backslashreplace")

    def _farewell(self) -> bytes:
        if not self._dropped:
            return b""

        return f"anyecho: {self._dropped} log lines were dropped: nobody read them in time\n".encode()

    def _write(self, line: bytes, *, timeout: float | None = None) -> None:
        with suppress(OSError):  # standard error is closed, or its disk full: nobody to tell
            write_all(2, line, timeout=timeout)


@contextmanager
def log_to_stderr(options: LogOptions, *, access: bool = False) -> Iterator[None]:
    """Log as `options` say within the block; with `access`, a line per closed connection, whatever the level."""
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
