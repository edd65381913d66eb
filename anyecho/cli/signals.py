"""SIGINT, SIGTERM and SIGHUP, handed to a task on any backend; the default action again after enough of them.

A SIGINT that is ignored when the process starts stays ignored: a shell without job control starts ``command &`` so,
and Ctrl-C is not meant for it. An ignored SIGTERM is handled all the same, because it is how a server is stopped.

Not anyio's receiver, because that counts inside the event loop: a loop that is stuck would swallow every signal,
and only SIGKILL would end it. Here Python itself counts, between two bytecodes of whatever is stuck.
"""

from __future__ import annotations

__all__ = ("Signals", "caught_signals")

import os
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from anyecho.cli.default_action import restore_default
from anyecho.cli.terminal import Terminal
from anyecho.net.fallback import Fallback

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """The signals that came, in order; `forgive` of them, after which the default action is restored."""

    def __init__(self, forgive: int, terminal: Terminal | None) -> None:
        self._forgive = forgive
        self._terminal = terminal
        self._came: deque[int] = deque()
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)

    async def next(self) -> int:
        """Wait for a signal; return its number."""
        self._wake_the_loop()
        registration = Fallback().register(self._read_end)
        try:
            while not self._came:
                registration.may_read = False
                await registration.readable()
                os.read(self._read_end, 64)
        finally:
            await registration.aclose()

        return self._came.popleft()

    def terminal_is_gone(self) -> bool:
        """Whether the process has lost the controlling terminal that it depends on."""
        return self._terminal is not None and self._terminal.is_gone()

    def note(self, signum: int, _: FrameType | None) -> None:
        self._came.append(signum)
        self._forgive -= signum in _SIGNALS
        if self._forgive <= 0 and signum in _SIGNALS:
            # Its own only: of another that has come in the same moment, Python would say, with a traceback, that it
            # is ignored. That one is restored, and repeated, when it is noted in its turn.
            restore_default(signum)
            if self._forgive < 0:
                os.kill(os.getpid(), signum)

        with suppress(OSError):
            os.write(self._write_end, b"\0")

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self._read_end)
        os.close(self._write_end)

    def _wake_the_loop(self) -> None:
        # A signal that comes just before the loop begins to wait would else be noticed when something else wakes
        # it. trio and uvloop have a descriptor for that; asyncio, unless told, has none.
        others = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        if others not in (-1, self._write_end):
            signal.set_wakeup_fd(others, warn_on_full_buffer=False)


@contextmanager
def caught_signals(*, forgive: int, hangup: bool = False) -> Iterator[Signals]:
    """Catch them within the block, in the main thread; enter it before the event loop starts.

    With `hangup`, SIGHUP too, as often as it comes, even if it is ignored when the block is entered.
    """
    # nohup(1) ignores SIGHUP for a process that shall survive its terminal.
    depends_on_terminal = hangup and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    signals = Signals(forgive, Terminal() if depends_on_terminal else None)
    caught = {signal.SIGTERM} | ({signal.SIGHUP} if hangup else set())
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        caught.add(signal.SIGINT)
    before = {each: signal.signal(each, signals.note) for each in caught}
    # What starts a process can leave signals blocked in it: they would never come.
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)
    try:
        yield signals
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for each, handler in before.items():
            signal.signal(each, handler)
        signals.close()
