"""The controlling terminal of the process, whose end is what SIGHUP is sent for."""

from __future__ import annotations

__all__ = ("Terminal",)

import errno
import os


class Terminal:
    """Remembers whether there was a controlling terminal when it was made."""

    def __init__(self) -> None:
        self._existed = _open_errno() == 0

    def is_gone(self) -> bool:
        """Whether there was a controlling terminal, and is none now."""
        # ENXIO is the one answer that means this; without a free descriptor, say, nothing is known.
        return self._existed and _open_errno() == errno.ENXIO


def _open_errno() -> int:
    """Return 0 if the controlling terminal can be opened, else why not. The kernel detaches one that hangs up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError as exc:
        return exc.errno or errno.EIO

    return 0
