"""Both sides of sd_notify(3): tell the service manager that a server is ready, reloads, stops or is alive; be told.

Each state is one datagram to NOTIFY_SOCKET, sent in the thread of the event loop: a stuck loop sends no watchdog
ping. Of the packages that do this, one is unmaintained and one needs a C compiler; both block when the manager does
not read. A supervisor receives the states of its child processes as the service manager does.
"""

from __future__ import annotations

__all__ = ("Notifier", "StateReceiver", "open_notifier")

import logging
import os
import re
import socket
import struct
import sys
from collections.abc import MutableMapping
from contextlib import ExitStack, closing
from tempfile import TemporaryDirectory
from time import monotonic_ns

from anyio import sleep

from anyecho.net.fallback import wait_readable

logger = logging.getLogger("anyecho.server")

#: Maximum bytes of a message (NOTIFY_BUFFER_MAX): systemd ignores longer ones.
_MAX = 4096
#: Characters of a status, of at most 4 bytes each.
_STATUS_MAX = 1000
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid (unix(7))


class Notifier:
    """Sends states to the service manager at `address`, a Unix datagram socket; does nothing if it is empty.

    Sending neither blocks nor raises. If a datagram cannot be sent, it is dropped; the first failure is logged.
    """

    def __init__(self, address: bytes = b"", *, period: float | None = None) -> None:
        self._address = address
        #: Seconds between two watchdog pings; None for no watchdog.
        self._period = period
        self._warned = False
        self._stopping = False
        self._sock: socket.socket | None = None
        if address:
            # Opened once: pings must go on when the process is out of descriptors.
            try:
                self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._sock.setblocking(False)
            except OSError as exc:
                self._warn(exc)

    def ready(self, status: str) -> None:
        """Send READY=1 with `status`, at the start and after a reload; do nothing once stopping."""
        if not self._stopping:
            self._send("READY=1", _status_line(status))

    def reloading(self) -> None:
        """Announce a reload, which `ready` ends (``Type=notify-reload``); do nothing once stopping."""
        if not self._stopping:
            self._send("RELOADING=1", f"MONOTONIC_USEC={monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        self._stopping = True
        self._send("STOPPING=1", _status_line(status))

    async def ping_watchdog(self) -> None:
        """Send watchdog pings until cancelled; return at once without a watchdog."""
        while self._period is not None:
            self._send("WATCHDOG=1")
            await sleep(self._period)

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()

    def _send(self, *lines: str) -> None:
        if self._sock is None:
            return
        try:
            self._sock.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except OSError as exc:
            self._warn(exc)

    def _warn(self, exc: OSError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("cannot notify %r: %s", os.fsdecode(self._address), exc.strerror or exc)


class StateReceiver:
    """A datagram socket for the states of one process.

    On Linux its name is abstract, and states of another process than `pid` are ignored; elsewhere it is in a
    directory of its own, which only this user can open. Raises `OSError`.
    """

    def __init__(self) -> None:
        #: The process to receive from, once it has started.
        self.pid: int | None = None
        with ExitStack() as opened:
            self._sock = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            self._sock.setblocking(False)
            if sys.platform == "linux":
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                self._sock.bind("")  # autobind (unix(7))
            else:
                directory = TemporaryDirectory(prefix="anyecho-", ignore_cleanup_errors=True)
                self._sock.bind(f"{opened.enter_context(directory)}/notify")
            self._opened = opened.pop_all()

    @property
    def address(self) -> str:
        """The value of NOTIFY_SOCKET."""
        name: str | bytes = self._sock.getsockname()
        return os.fsdecode(b"@" + name[1:] if isinstance(name, bytes) else name)

    async def receive(self) -> dict[str, str]:
        """Wait for a datagram; return its assignments, like ``{"READY": "1"}``. A cancellation loses nothing."""
        while True:
            try:
                datagram, ancillary, *_ = self._sock.recvmsg(_MAX, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                await wait_readable(self._sock)
                continue
            if self._is_from_child(ancillary):
                lines = datagram.decode(errors="replace").splitlines()
                return {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}

    def close(self) -> None:
        """Close the socket. No task may be in `receive`."""
        self._opened.close()

    def _is_from_child(self, ancillary: list[tuple[int, int, bytes]]) -> bool:
        if sys.platform != "linux":
            return True

        senders = [
            _CREDENTIALS.unpack(data)[0]
            for level, kind, data in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) == _CREDENTIALS.size
        ]
        return senders == [self.pid]


def open_notifier(environ: MutableMapping[str, str]) -> closing[Notifier]:
    """Return a notifier for the service manager in `environ`, which is closed at the end of a ``with`` block.

    The variables are removed, so that child processes do not notify the manager. A malformed value is a warning.
    """
    names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
    address, microseconds, pid = (environ.pop(name, "") for name in names)
    period = _parse_period(microseconds) if address and pid in ("", str(os.getpid())) else None
    return closing(Notifier(_parse_address(address), period=period))


def _parse_address(text: str) -> bytes:
    """Return the Unix address in NOTIFY_SOCKET, or nothing; ``vsock:`` (the host of a VM) is not supported."""
    if text.startswith("@"):
        return b"\0" + os.fsencode(text[1:])
    if text.startswith("/"):
        return os.fsencode(text)
    if text and not text.startswith("vsock"):
        logger.warning("NOTIFY_SOCKET is %r, neither a path nor @name: no service manager is notified", text)

    return b""


def _parse_period(microseconds: str) -> float | None:
    """Return half of the watchdog time-out in seconds, as sd_watchdog_enabled(3) recommends."""
    if not microseconds:
        return None
    if not re.fullmatch("[0-9]{1,18}", microseconds) or int(microseconds) == 0:
        logger.warning("WATCHDOG_USEC is %r, not a number above 0: no watchdog pings are sent", microseconds)
        return None

    return int(microseconds) / 2 / 1e6


def _status_line(status: str) -> str:
    return f"STATUS={status if len(status) <= _STATUS_MAX else status[: _STATUS_MAX - 3] + '...'}"
