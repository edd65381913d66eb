"""Whether the process still has its controlling terminal; the kernel sends SIGHUP when the terminal closes."""

from __future__ import annotations

__all__ = ("terminal_errno",)

import errno
import os


def terminal_errno() -> int:
    """Return 0 if the controlling terminal can be opened, else the errno: ENXIO if there is none.

    The kernel detaches it on a hang-up. EMFILE, for example, says nothing about the terminal.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError as exc:
        return exc.errno or errno.EIO

    return 0
