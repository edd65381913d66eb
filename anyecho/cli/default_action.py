"""Restore the terminating default action of a signal, for PID 1 of a container too.

The kernel discards a signal to PID 1 of a PID namespace if its action is the default (pid_namespaces(7)). There, a
handler exits with the status that a shell shows for the signal. Imports nothing of the package: it is used before
the rest is imported.
"""

from __future__ import annotations

__all__ = ("end_on_sigterm", "restore_default")

import os
import signal
from types import FrameType


def restore_default(signum: int) -> None:
    """Make the next `signum` end the process."""
    signal.signal(signum, _end if os.getpid() == 1 else signal.SIG_DFL)


def end_on_sigterm() -> None:
    """Make SIGTERM end the process, as PID 1 too, until another handler is installed."""
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        restore_default(signal.SIGTERM)


def _end(signum: int, _: FrameType | None) -> None:
    os._exit(128 + signum)
