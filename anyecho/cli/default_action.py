"""The default action of a signal that ends a process, also for the first process of a PID namespace.

For that process, PID 1 of a container, the kernel discards a signal whose action is the default
(pid_namespaces(7)). So a handler ends the process there, with the status that a shell shows for a signal. Imports
nothing of the package, because it is needed before the rest is imported.
"""

from __future__ import annotations

__all__ = ("end_on_sigterm", "restore_default")

import os
import signal
from types import FrameType


def restore_default(signum: int) -> None:
    """Let the next `signum` end the process."""
    signal.signal(signum, _end if os.getpid() == 1 else signal.SIG_DFL)


def end_on_sigterm() -> None:
    """Let SIGTERM end the process until something else handles it, as it does unless the kernel discards it."""
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        restore_default(signal.SIGTERM)


def _end(signum: int, _: FrameType | None) -> None:
    os._exit(128 + signum)
