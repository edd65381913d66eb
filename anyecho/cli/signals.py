"""Deliver signals such as SIGINT to a task on any backend; restore the default action after a given number.

A SIGINT that is ignored when the process starts stays ignored: a shell without job control starts ``command &`` so,
and Ctrl-C is not meant for it. An ignored SIGTERM is handled, because service managers stop a server with it.

Signals are counted in a Python handler, between two bytecodes. anyio's receiver counts in the event loop: if the
loop is stuck, only SIGKILL would end the process.
"""

from __future__ import annotations

__all__ = ("Signals", "caught_signals")

import errno
import os
import signal
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from anyecho.cli.default_action import restore_default
from anyecho.net.fallback import wait_readable

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """The received signals, in order; after `handled` of them, the default action is restored."""

    def __init__(self, handled: int, *, has_terminal: bool) -> None:
        self._remaining = handled
        #: Whether the process had a controlling terminal, and depends on it.
        self._had_terminal = has_terminal
        self._received: deque[int] = deque()
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)

    async def next(self) -> int:
        """Wait for a signal; return its number."""
        self._wake_the_loop()
        while not self._received:
            await wait_readable(self._read_end)
            os.read(self._read_end, 64)

        return self._received.popleft()

    def terminal_is_gone(self) -> bool:
        """Return whether the process has lost the controlling terminal that it depends on."""
        return self._had_terminal and _terminal_errno() == errno.ENXIO

    def on_signal(self, signum: int, _: FrameType | None) -> None:
        self._received.append(signum)
        self._remaining -= signum in _SIGNALS
        if self._remaining <= 0 and signum in _SIGNALS:
            # For this signal only: if the other one is pending, Python would print a traceback. The other default
            # action is restored, and the signal repeated, when its own handler runs.
            restore_default(signum)
            if self._remaining < 0:
                os.kill(os.getpid(), signum)

        with suppress(OSError):
            os.write(self._write_end, b"\0")

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self._read_end)
        os.close(self._write_end)

    def _wake_the_loop(self) -> None:
        # Otherwise a signal just before the loop blocks is handled only at the next wake-up. trio and uvloop set a
        # wake-up descriptor themselves; asyncio sets none without its own signal handlers.
        previous = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        if previous not in (-1, self._write_end):
            signal.set_wakeup_fd(previous, warn_on_full_buffer=False)


@contextmanager
def caught_signals(
    *, handled: int, hangup: bool = False, more: Collection[signal.Signals] = ()
) -> Iterator[Signals]:
    """Catch SIGINT and SIGTERM within the block, in the main thread; enter it before the event loop starts.

    With `hangup`, SIGHUP is caught too, any number of times, even if it is ignored when the block is entered; so is
    each of `more`.
    """
    # nohup(1) starts a process with SIGHUP ignored, so that it survives its terminal.
    depends_on_terminal = hangup and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    signals = Signals(handled, has_terminal=depends_on_terminal and _terminal_errno() == 0)
    caught = {signal.SIGTERM, *more} | ({signal.SIGHUP} if hangup else set())
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        caught.add(signal.SIGINT)
    before = {each: signal.signal(each, signals.on_signal) for each in caught}
    # The parent process may have left signals blocked; they would never be delivered.
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)
    try:
        yield signals
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for each, handler in before.items():
            signal.signal(each, handler)
        signals.close()


def _terminal_errno() -> int:
    """Return 0 if the controlling terminal can be opened, else the errno: ENXIO if there is none.

    The kernel detaches it on a hang-up, and sends SIGHUP. EMFILE, for example, says nothing about the terminal.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError as exc:
        return exc.errno or errno.EIO

    return 0
