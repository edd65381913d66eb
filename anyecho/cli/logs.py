"""Log lines on standard error, as text or JSON, that never make the service wait.

The lines of the original example are only a matter of form: `TextFormatter` makes ``echo_::1_64624: received
b'hello'`` of a record that says who the peer is. No logger is ever made for a connection; they are never freed.
"""

from __future__ import annotations

__all__ = ("JSONFormatter", "LogOptions", "TextFormatter", "log_to_stderr")

import json
import logging
import os
import queue
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from threading import Thread
from typing import Literal

#: Lines kept for a reader of standard error that is slow; more are dropped, and counted.
_QUEUE_SIZE = 10_000
#: How long the exit waits for such a reader.
_FLUSH_TIMEOUT = 1.0

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


class _Patient(QueueHandler):
    """Puts lines into a bounded queue, for a thread to write; drops and counts what does not fit."""

    def __init__(self, lines: queue.Queue[logging.LogRecord | None], listener: QueueListener) -> None:
        super().__init__(lines)
        self._listener = listener
        self.started = False
        self.dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        # Not before there is a line: in a process of two threads every system call on a descriptor costs more.
        if not self.started:
            self._listener.start()
            self.started = True
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


class _Writer(QueueListener):
    def __init__(self, lines: queue.Queue[logging.LogRecord | None], sink: logging.Handler) -> None:
        super().__init__(lines, sink)
        self._lines = lines

    def enqueue_sentinel(self) -> None:
        self._lines.put(None)  # waits for room, which only a thread does that nobody waits for


class _Stderr(logging.Handler):
    """Unbuffered, and without its lock: the exit would wait for either, in vain while a write blocks."""

    def handle(self, record: logging.LogRecord) -> bool:
        self.emit(record)  # only the writer's thread is ever here
        return True

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # standard error is closed, or its disk full: nobody to tell
            os.write(2, (self.format(record) + "\n").encode(errors="backslashreplace"))


@contextmanager
def log_to_stderr(options: LogOptions, *, access: bool = False) -> Iterator[None]:
    """Log as `options` say within the block; with `access`, a line per closed connection, whatever the level."""
    sink = _Stderr()
    sink.setFormatter(JSONFormatter() if options.log_format == "json" else TextFormatter())
    lines: queue.Queue[logging.LogRecord | None] = queue.Queue(_QUEUE_SIZE)
    listener = _Writer(lines, sink)
    patient = _Patient(lines, listener)
    root, ours, closes = (logging.getLogger(name) for name in (None, "anyecho", "anyecho.access"))
    levels = ours.level, closes.level
    ours.setLevel(options.log_level.upper())
    closes.setLevel(logging.INFO if access else logging.CRITICAL)
    root.addHandler(patient)
    try:
        yield
    finally:
        root.removeHandler(patient)
        ours.setLevel(levels[0])
        closes.setLevel(levels[1])
        if patient.started:
            flushing = Thread(target=_flush, args=(listener, patient), daemon=True)
            flushing.start()
            flushing.join(_FLUSH_TIMEOUT)


def _flush(listener: QueueListener, patient: _Patient) -> None:
    listener.stop()
    if patient.dropped:
        with suppress(OSError):
            os.write(2, f"anyecho: {patient.dropped} log lines were dropped: nobody read them in time\n".encode())
