"""Lines of JSON between a supervisor and a worker, over a pair of connected sockets.

The end of one process, however it comes about, is EOF for the other. This module knows no message.
"""

from __future__ import annotations

__all__ = ("Lifeline", "inherit_lifeline", "open_lifeline")

import json
import os
import select
import socket
from collections.abc import Mapping
from contextlib import suppress
from threading import Thread
from time import sleep
from typing import Any, TypeAlias

from anyecho.errors import UsageError
from anyecho.net.fallback import wait_readable, wait_writable

#: An object of JSON.
Message: TypeAlias = Mapping[str, Any]


class Lifeline:
    """One of the two ends. It owns `sock`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._received = b""
        self._unsent = b""

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: Message) -> bool:
        """Send a line without blocking. Return false, and drop it, if the peer is gone or reads too slowly."""
        had_unsent = bool(self._unsent)
        if not had_unsent:
            self._unsent = json.dumps(message).encode() + b"\n"
        try:
            while self._unsent:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            return not had_unsent  # the rest follows before the next line
        except OSError:
            return False

        return self.send(message) if had_unsent else True

    async def send_all(self, message: Message) -> None:
        """Send a line of any length; return early if the peer is gone. One task at a time may call it."""
        self._unsent += json.dumps(message).encode() + b"\n"
        with suppress(OSError):
            while self._unsent:
                try:
                    self._unsent = self._unsent[self._sock.send(self._unsent) :]
                except BlockingIOError:
                    await wait_writable(self._sock)

    def receive_first(self, timeout: float) -> dict[str, Any] | None:
        """Block until a line is received, for `timeout` seconds at most; return None at EOF. Raises `OSError`."""
        self._sock.settimeout(timeout)
        try:
            while b"\n" not in self._received:
                if not (chunk := self._sock.recv(65536)):
                    return None
                self._received += chunk
        finally:
            self._sock.setblocking(False)

        return self._take()

    async def receive(self) -> dict[str, Any] | None:
        """Wait for a line; return None at EOF, also if the peer is killed. A cancellation loses nothing."""
        while b"\n" not in self._received:
            try:
                chunk = self._sock.recv(65536)
            except BlockingIOError:
                await wait_readable(self._sock)
                continue
            except OSError:  # a reset: the peer had unread lines
                return None
            if not chunk:
                return None
            self._received += chunk

        return self._take()

    def exit_after_end(self, seconds: float) -> None:
        """End this process `seconds` after the other end is closed, even if its event loop is stuck.

        Without a free thread, this has no effect.
        """
        hang_up = select.poll()
        hang_up.register(self._sock, 0)

        def watch() -> None:
            hang_up.poll()
            sleep(seconds)
            os._exit(1)

        with suppress(RuntimeError):
            Thread(target=watch, daemon=True).start()

    def close(self) -> None:
        """Close this end. No task may be in `receive` or `send_all`."""
        self._sock.close()

    def _take(self) -> dict[str, Any]:
        line, _, self._received = self._received.partition(b"\n")
        with suppress(ValueError):  # other code of the worker may have written to its descriptor
            message = json.loads(line)
            if isinstance(message, dict):
                return message

        return {}


def open_lifeline() -> tuple[Lifeline, socket.socket]:
    """Return the end of this process, and the end to pass on. Raises `OSError`."""
    ours, theirs = socket.socketpair()
    return Lifeline(ours), theirs


def inherit_lifeline(descriptor: int) -> Lifeline:
    """Take over the end that the parent process passed as `descriptor`. Raises `UsageError`."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        raise UsageError(f"descriptor {descriptor} is no end of a lifeline: only a supervisor passes one") from None

    os.set_inheritable(descriptor, False)
    return Lifeline(sock)
