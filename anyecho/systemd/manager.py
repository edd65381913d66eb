"""Receive the states of a child process, as a service manager does at NOTIFY_SOCKET (sd_notify(3)).

`notify` is the other side.
"""

from __future__ import annotations

__all__ = ("StateReceiver",)

import os
import shutil
import socket
import struct
import sys
import tempfile

from anyecho.net.fallback import Fallback

_MAX = 4096  # NOTIFY_BUFFER_MAX of systemd
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid (unix(7))


class StateReceiver:
    """A datagram socket for the states of one process.

    On Linux its name is abstract, and states of another process than `pid` are ignored; elsewhere it is in a
    directory of its own, which only this user can open. Raises `OSError`.
    """

    def __init__(self) -> None:
        #: The process to receive from, once it has started.
        self.pid: int | None = None
        self._directory: str | None = None
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._sock.setblocking(False)
            if sys.platform == "linux":
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                self._sock.bind("")  # autobind (unix(7))
            else:
                self._directory = tempfile.mkdtemp(prefix="anyecho-")
                self._sock.bind(f"{self._directory}/notify")
        except BaseException:
            self.close()
            raise

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
                await self._readable()
                continue
            if self._is_from_child(ancillary):
                lines = datagram.decode(errors="replace").splitlines()
                return {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}

    def close(self) -> None:
        """Close the socket. No task may be in `receive`."""
        self._sock.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _is_from_child(self, ancillary: list[tuple[int, int, bytes]]) -> bool:
        if sys.platform != "linux":
            return True

        senders = [
            _CREDENTIALS.unpack(data)[0]
            for level, kind, data in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) == _CREDENTIALS.size
        ]
        return senders == [self.pid]

    async def _readable(self) -> None:
        registration = Fallback().register(self._sock)
        registration.may_read = False  # recvmsg(2) has just said so
        try:
            await registration.readable()
        finally:
            await registration.aclose()
