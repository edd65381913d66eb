"""Whether the process still has its controlling terminal; the kernel sends SIGHUP when the terminal closes."""

from __future__ import annotations

__all__ = ("Terminal",)

import errno
import os


class Terminal:
    """The controlling terminal, if there is one when the object is created."""

    def __init__(self) -> None:
        self._existed = _open_errno() == 0

    def is_gone(self) -> bool:
        """Return whether the controlling terminal existed and has been lost since."""
        # Only ENXIO means that; EMFILE, for example, says nothing about the terminal.
        return self._existed and _open_errno() == errno.ENXIO


def _open_errno() -> int:
    """Return 0 if the controlling terminal can be opened, else the errno. The kernel detaches it on a hang-up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError as exc:
        return exc.errno or errno.EIO

    return 0
