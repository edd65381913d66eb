"""Accepting: from a listening socket to connected ones, whatever accept(2) says.

Nothing is awaited between accept(2) and the hand-over, so that cancelling loses no connection. A peer that is
gone before it is accepted is counted; a machine that has run out of something is waited for; only what no waiting
mends is an error. Who is admitted, and what becomes of them, others decide.
"""

from __future__ import annotations

__all__ = ("AcceptLimit", "Acceptor")

import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from anyio import sleep
from anyio.lowlevel import checkpoint

from anyecho.net.accepted import Preparation
from anyecho.net.poller import Fallback, Poller, call_while_readable
from anyecho.throttled_log import ThrottledLog

logger = logging.getLogger("anyecho.server")

#: Connections taken in one wake-up, before those already open have their turn.
_BATCH = 64
#: How long to let a machine recover that is out of buffers or descriptors: nginx takes 500 ms, trio 100.
_RETRY_DELAY = 0.1

#: What accept(2) says of one connection, not of the listener: its "Error handling", and firewalls' EPERM.
_IGNORABLE = {
    *(errno.ECONNABORTED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EINTR, errno.ENETDOWN),
    *(errno.ENETUNREACH, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EPERM, errno.EPROTO, errno.ETIMEDOUT),
    getattr(errno, "ENONET", errno.ENETDOWN),  # Linux only
}
_CAPACITY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
#: What epoll_ctl(2) says when there are too many (fs.epoll.max_user_watches).
_WATCH_CAPACITY = frozenset({errno.ENOSPC, errno.ENOMEM})


class AcceptLimit(Protocol):
    """Decides whether one more connection may be accepted; while not, the kernel's backlog is the queue."""

    def may_accept(self) -> bool: ...

    async def wait_may_accept(self) -> None: ...


@dataclass(eq=False, kw_only=True)
class Acceptor:
    """Accepts on `sock` while `limit` allows it, and gives every connection to `hand_over`, which owns it then.

    Errors are counted in `errors` by their names (``EMFILE``), connections closed for want of a descriptor as
    ``shed``.
    """

    sock: socket.socket
    limit: AcceptLimit
    hand_over: Callable[[socket.socket, Any], None]
    errors: Counter[str]
    #: Done to each connection before it is handed over.
    preparation: Preparation | None = None
    _spare: int = field(init=False, default=-1)
    _stopped: bool = field(init=False, default=False)
    _has_accepted: bool = field(init=False, default=False)
    _exhausted: bool = field(init=False, default=False)
    _failure: OSError | None = field(init=False, default=None)
    _warnings: ThrottledLog = field(init=False, default_factory=lambda: ThrottledLog(logger))

    async def run(self, poller: Poller | Fallback) -> None:
        """Accept until cancelled or stopped. Raises the `OSError` of a listener that can accept no more."""
        self._spare = _open_spare()
        try:
            while not self._stopped:
                try:
                    await call_while_readable(poller, self.sock, self.accept_some)
                except OSError as exc:  # the kernel watches no more sockets, just now
                    if exc.errno not in _WATCH_CAPACITY:
                        raise
                    self._count(exc)
                    self._exhausted = True
                if self._failure is not None:
                    raise self._failure

                await self._recover()
        finally:
            self._close_spare()

    def stop(self) -> None:
        """Accept nothing from now on; `run` ends when something wakes it."""
        self._stopped = True
        self._close_spare()

    def _close_spare(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def accept_some(self, at_most: int = _BATCH) -> bool:
        """Accept what is pending; return whether to go on when there is more, or to pause first."""
        failed = 0
        if self._stopped:
            return False
        with suppress(BlockingIOError):  # nobody is waiting any more
            for _ in range(at_most):
                if not self.limit.may_accept():
                    return False
                try:
                    sock, peer = self.sock.accept()
                except BlockingIOError:
                    raise
                except OSError as exc:
                    if not self._may_continue_after(exc):
                        return False
                    failed += 1
                else:
                    self._has_accepted = True
                    self._deliver(sock, peer)

        # Nothing but errors, and no end of them: whatever it is, it does not go away by asking again at once.
        self._exhausted = failed == at_most
        return not self._exhausted

    def _may_continue_after(self, exc: OSError) -> bool:
        self._count(exc)
        if exc.errno in _IGNORABLE:
            return True
        if exc.errno not in _CAPACITY:
            self._failure = exc
            return False

        self._exhausted = not self._use_spare()
        return not self._exhausted

    def _use_spare(self) -> bool:
        """Accept one on the spare descriptor, so that it does not wait in vain; return whether that could be.

        If another spare can be had at once the machine is well again and the connection is served. If not, it is
        closed: a peer that is told can go elsewhere.
        """
        if self._spare < 0:
            return False

        os.close(self._spare)
        self._spare = -1
        try:
            sock, peer = self.sock.accept()
        except BlockingIOError:
            # accept(2) wants a descriptor first, and looks whether anybody is there only then.
            self._spare = _open_spare()
            raise
        except OSError:
            self._spare = _open_spare()
            return False

        self._spare = _open_spare()
        if self._spare >= 0:
            self._deliver(sock, peer)
        else:
            sock.close()
            self.errors["shed"] += 1
            self._spare = _open_spare()

        return True

    def _deliver(self, sock: socket.socket, peer: Any) -> None:
        sock.setblocking(False)
        if self.preparation is not None:
            self.preparation(sock)
        self.hand_over(sock, peer)

    async def _recover(self) -> None:
        if self._exhausted:
            await sleep(_RETRY_DELAY)
            self._exhausted = False
            if self._spare < 0:
                self._spare = _open_spare()
        else:
            await self.limit.wait_may_accept()
            if self._has_accepted:
                # Whoever took the last slot lets the other listeners come first this time.
                self._has_accepted = False
                await checkpoint()

    def _count(self, exc: OSError) -> None:
        self.errors[errno.errorcode.get(exc.errno or 0, str(exc.errno))] += 1
        if exc.errno not in _CAPACITY | _WATCH_CAPACITY:
            return

        self._warnings.warn("cannot accept: %s", exc.strerror)


def _open_spare() -> int:
    """A descriptor to give up when there are no others; -1 if there are none."""
    try:
        return os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return -1
