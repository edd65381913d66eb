"""Formats of log lines: text, and JSON with a field for each fact about a connection.

A text line of the server is ``echo_::1_64624: received b'hello'`` for a record with a ``peer``. No logger is
created per connection: `logging` never frees a logger.
"""

from __future__ import annotations

__all__ = ("JSONFormatter", "TextFormatter")

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

_PREFIXES = {"anyecho.server": "main", "anyecho.client": "echo_client", "anyecho.access": "access"}
#: The fields of both formats, in their order. The address is in the name of the peer, which is ``address_port``.
_FIELDS = (
    *("peer", "via", "listener", "tls", "cipher", "sni"),
    *("reason", "bytes_received", "bytes_sent", "seconds"),
)
_JSON_FIELDS = (*_FIELDS, "peer_address", "peer_port")


class TextFormatter(logging.Formatter):
    """``prefix: message``, and ``name=value`` for each field.

    With `timed`, time (UTC) and level come first; then, of a worker, its number.
    """

    def __init__(self, *, timed: bool = False, worker: int | None = None) -> None:
        super().__init__()
        self._timed = timed
        self._worker = "" if worker is None else f"worker {worker}: "

    def format(self, record: logging.LogRecord) -> str:
        prefix = _PREFIXES.get(record.name, record.name)
        head = f"{_time(record)} {record.levelname.lower()} " if self._timed else ""
        head += self._worker
        fields = _fields(record, _FIELDS)
        if record.name == "anyecho.server" and "peer" in fields:
            return f"{head}echo_{fields['peer']}: {record.getMessage()}"

        pairs = [f"{name}={_word(str(value))}" for name, value in fields.items()]
        return head + " ".join([f"{prefix}: {record.getMessage()}", *pairs])


class JSONFormatter(logging.Formatter):
    """One object per line: time (UTC), level, logger, worker, message, and the fields of the connection."""

    def __init__(self, *, worker: int | None = None) -> None:
        super().__init__()
        self._worker = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        head = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        message = {"message": record.getMessage()}
        return json.dumps(head | self._worker | message | _fields(record, _JSON_FIELDS))


def _fields(record: logging.LogRecord, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(record, name) for name in names if hasattr(record, name)}


def _time(record: logging.LogRecord) -> str:
    text = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _word(text: str) -> str:
    """Return `text` as one word, quoted if it is none: a peer chooses its SNI."""
    return text if re.fullmatch(r'[^\s"]+', text) and text.isprintable() else json.dumps(text)
