"""What a service manager is told of us: that we are ready, reload, stop, and are alive (sd_notify(3)).

Each time one datagram to the socket that NOTIFY_SOCKET names, sent from where the event loop is, so that a loop
that is stuck tells nothing. Written here, because of the packages that do it one is not kept any more and one needs
a C compiler; and both would wait for a manager that does not read.
"""

from __future__ import annotations

__all__ = ("Notifier", "open_notifier")

import logging
import os
import re
import socket
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from time import monotonic_ns

from anyio import sleep

logger = logging.getLogger("anyecho.server")

#: systemd ignores a message of more than 4096 bytes (NOTIFY_BUFFER_MAX).
_STATUS_MAX = 1000


class Notifier:
    """Tells the manager at `address`, the address of a Unix datagram socket; nobody, if that is empty.

    Nothing of it waits or raises: a manager that cannot be reached, or has no room, is one warning and misses it.
    """

    def __init__(self, address: bytes = b"", *, period: float | None = None) -> None:
        self._address = address
        #: Seconds between two signs of life.
        self._period = period
        self._warned = False
        self._stopping = False
        self._sock: socket.socket | None = None
        if address:
            # Kept open: a process that is out of descriptors is alive all the same.
            try:
                self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._sock.setblocking(False)
            except OSError as exc:
                self._warn(exc)

    def ready(self, status: str) -> None:
        """We are served by what `status` says; also the end of a reload. Not any more once we are stopping."""
        if not self._stopping:
            self._send("READY=1", _status_line(status))

    def reloading(self) -> None:
        """A reload begins, which `ready` ends (``Type=notify-reload``)."""
        if not self._stopping:
            self._send("RELOADING=1", f"MONOTONIC_USEC={monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        self._stopping = True
        self._send("STOPPING=1", _status_line(status))

    async def ping_watchdog(self) -> None:
        """Give signs of life until cancelled; return at once if nobody wants any."""
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


@contextmanager
def open_notifier(environ: MutableMapping[str, str]) -> Iterator[Notifier]:
    """A notifier of whom `environ` names, within the block.

    The variables are removed: no child shall speak for us. What they say wrongly is a warning.
    """
    names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
    address, microseconds, pid = (environ.pop(name, "") for name in names)
    period = _parse_period(microseconds) if address and pid in ("", str(os.getpid())) else None
    notifier = Notifier(_parse_address(address), period=period)
    try:
        yield notifier
    finally:
        notifier.close()


def _parse_address(text: str) -> bytes:
    """Where Unix datagrams go. A manager outside of a virtual machine (``vsock:``) is for another to tell."""
    if text.startswith("@"):
        return b"\0" + os.fsencode(text[1:])
    if text.startswith("/"):
        return os.fsencode(text)
    if text and not text.startswith("vsock"):
        logger.warning("NOTIFY_SOCKET is %r, neither a path nor @name: nobody is notified", text)

    return b""


def _parse_period(microseconds: str) -> float | None:
    """Half of what is allowed, as sd_watchdog_enabled(3) recommends."""
    if not microseconds:
        return None
    if not re.fullmatch("[0-9]{1,18}", microseconds) or int(microseconds) == 0:
        logger.warning("WATCHDOG_USEC is %r, not a number above 0: no watchdog is served", microseconds)
        return None

    return int(microseconds) / 2 / 1e6


def _status_line(status: str) -> str:
    return f"STATUS={status if len(status) <= _STATUS_MAX else status[: _STATUS_MAX - 3] + '...'}"
