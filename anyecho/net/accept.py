"""Accept connections on a listening socket, and handle the errors of accept(2).

Nothing is awaited between accept(2) and the hand-over, so a cancellation loses no connection. A connection that
failed in the backlog is counted. If descriptors or memory run out, accepting pauses. Any other error is raised. The
caller decides which connections are admitted, and handles them.
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
from anyecho.net.poller import Fallback, Poller
from anyecho.throttle import ThrottledLog

logger = logging.getLogger("anyecho.server")

#: Seconds until the next attempt if buffers or descriptors have run out: nginx waits 0.5, trio 0.1.
_RETRY_DELAY = 0.1

#: Errors of one connection, not of the listener: "Error handling" in accept(2), and EPERM of firewalls.
_IGNORABLE = {
    *(errno.ECONNABORTED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EINTR, errno.ENETDOWN),
    *(errno.ENETUNREACH, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EPERM, errno.EPROTO, errno.ETIMEDOUT),
    getattr(errno, "ENONET", errno.ENETDOWN),  # Linux only
}
_CAPACITY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
#: Errors of epoll_ctl(2) if too many sockets are watched (fs.epoll.max_user_watches).
_WATCH_CAPACITY = frozenset({errno.ENOSPC, errno.ENOMEM})


class AcceptLimit(Protocol):
    """Decides whether one more connection may be accepted; if not, it stays in the accept backlog."""

    def may_accept(self) -> bool: ...

    async def wait_may_accept(self) -> None: ...


@dataclass(eq=False, kw_only=True)
class Acceptor:
    """Accepts on `sock` while `limit` allows it, and passes each connection to `hand_over`, which then owns it.

    `errors` counts errors by name (``EMFILE``), and connections closed for lack of a descriptor as ``shed``.
    """

    sock: socket.socket
    limit: AcceptLimit
    hand_over: Callable[[socket.socket, Any], None]
    errors: Counter[str]
    #: Maximum connections accepted in one wake-up, before open connections have their turn.
    batch: int = 64
    #: Called with each connection before `hand_over`.
    preparation: Preparation | None = None
    #: Called if descriptors or memory have run out, to close connections. With it, no connection is shed: the spare
    #: descriptor serves one.
    make_room: Callable[[], None] | None = None
    _spare: int = field(init=False, default=-1)
    _stopped: bool = field(init=False, default=False)
    _has_accepted: bool = field(init=False, default=False)
    _retry_later: bool = field(init=False, default=False)
    _failure: OSError | None = field(init=False, default=None)
    _warnings: ThrottledLog = field(init=False, default_factory=lambda: ThrottledLog(logger))

    async def run(self, poller: Poller | Fallback) -> None:
        """Accept until cancelled or stopped. Raises `OSError` if the listener can accept no more."""
        self._open_spare()
        try:
            while not self._stopped:
                try:
                    await poller.call_while_readable(self.sock, self.accept_some)
                except OSError as exc:  # the kernel cannot watch another socket now
                    if exc.errno not in _WATCH_CAPACITY:
                        raise
                    self._count(exc)
                    self._retry_later = True
                if self._failure is not None:
                    raise self._failure

                await self._recover()
        finally:
            self._close_spare()

    def stop(self) -> None:
        """Accept no more connections. The listening socket stays open. `run` returns once it is woken."""
        self._stopped = True
        self._close_spare()

    def _open_spare(self) -> None:
        """Open a spare descriptor, to close when no other is free; unless there is one, or none is free now."""
        if self._spare < 0:
            with suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY)

    def _close_spare(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def accept_some(self, at_most: int | None = None) -> bool:
        """Accept up to `at_most` connections (by default `batch`); return false if it pauses or is stopped."""
        at_most = self.batch if at_most is None else at_most
        failed = 0
        with suppress(BlockingIOError):  # the backlog is empty
            for _ in range(at_most):
                if self._stopped or not self.limit.may_accept():
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

        # All attempts failed, so another at once would probably fail too: pause, do not spin.
        self._retry_later = failed == at_most
        return not self._retry_later

    def _may_continue_after(self, exc: OSError) -> bool:
        self._count(exc)
        if exc.errno in _IGNORABLE:
            return True
        if exc.errno not in _CAPACITY:
            self._failure = exc
            return False

        if self.make_room is not None:
            self.make_room()
        self._retry_later = not self._use_spare()
        return not self._retry_later

    def _use_spare(self) -> bool:
        """Accept one connection with the spare descriptor; return whether accepting may go on.

        If a new spare can be opened at once, the shortage is over and the connection is served. If not, it is
        closed, so that its peer can try another server instead of waiting in the backlog. With `make_room` it is
        served: the next connection waits until there is room.
        """
        if self._spare < 0:
            return False

        self._close_spare()
        try:
            sock, peer = self.sock.accept()
        except BlockingIOError:
            # accept(2) allocates a descriptor before it checks the backlog, which may be empty.
            raise
        except OSError:
            return False
        finally:
            self._open_spare()

        if self._spare >= 0 or self.make_room is not None:
            self._deliver(sock, peer)
        else:
            sock.close()
            self.errors["shed"] += 1
            self._open_spare()

        return True

    def _deliver(self, sock: socket.socket, peer: Any) -> None:
        sock.setblocking(False)
        if self.preparation is not None:
            self.preparation(sock)
        self.hand_over(sock, peer)

    async def _recover(self) -> None:
        if self._retry_later:
            await sleep(_RETRY_DELAY)
            self._retry_later = False
            self._open_spare()
        else:
            await self.limit.wait_may_accept()
            if self._has_accepted:
                # Yield, so that another listener gets the next free slot.
                self._has_accepted = False
                await checkpoint()

    def _count(self, exc: OSError) -> None:
        self.errors[errno.errorcode.get(exc.errno or 0, str(exc.errno))] += 1
        if exc.errno in _CAPACITY | _WATCH_CAPACITY:
            self._warnings.warn("cannot accept: %s", exc.strerror)
