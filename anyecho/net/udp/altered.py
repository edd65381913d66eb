"""Echo datagrams with replies that differ from them: several or none, late or changed."""

from __future__ import annotations

__all__ = ("AlteredEcho", "Replies")

import math
import socket
from collections.abc import Callable
from heapq import heappop, heappush
from time import monotonic
from typing import TypeAlias

from anyio import Event, move_on_after

from anyecho.net.error_queue import drain_error_queue
from anyecho.net.udp.counts import DatagramCounts, Guard, Source
from anyecho.net.udp.recvfrom import BATCH, SingleEcho

#: Returns the replies to a datagram that came at a time, each with the time when it is due (`time.monotonic`).
Replies: TypeAlias = Callable[[float, bytes], list[tuple[float, bytes]]]
#: Late replies held at most; more are dropped.
_HELD = 65536

_Control: TypeAlias = list[tuple[int, int, bytes]] | None


class AlteredEcho(SingleEcho):
    """Sends the replies that `replies` returns. The task `run` sends the late ones."""

    def __init__(
        self,
        sock: socket.socket,
        replies: Replies,
        guard: Guard,
        counts: DatagramCounts,
        *,
        reply_from_dst: bool,
    ) -> None:
        super().__init__(sock, reply_from_dst=reply_from_dst)
        self._replies = replies
        self._guard = guard
        self._counts = counts
        #: By the time when it is due, then in order: number, datagram, source, control messages.
        self._late: list[tuple[float, int, bytes, Source, _Control]] = []
        self._number = 0
        self._more = Event()

    async def run(self) -> None:
        """Send each late reply when it is due, until cancelled."""
        while True:
            self._more = Event()
            wait = self._late[0][0] - monotonic() if self._late else math.inf
            with move_on_after(wait):
                await self._more.wait()
            while self._late and self._late[0][0] <= monotonic():
                _, _, reply, source, control = heappop(self._late)
                self._reply_control = control
                self._send(reply, source)

    def echo_batch(self, guard: Guard, counts: DatagramCounts) -> bool:
        """Reply to queued datagrams, at most 64. Return false if each receive was an error."""
        failed = 0
        for _ in range(BATCH):
            try:
                size, source = self._receive()
            except BlockingIOError:
                drain_error_queue(self._sock)
                break
            except OSError as exc:
                counts.count_error(exc)
                failed += 1
                continue

            counts.received += 1
            counts.bytes_received += size
            if guard.admit(source):
                self._reply_to(bytes(self._view[:size]), source)

        return failed < BATCH

    def _reply_to(self, datagram: bytes, source: Source) -> None:
        now = monotonic()
        replies = self._replies(now, datagram)
        if not replies:
            self._counts.dropped["fault"] += 1
        for due, reply in replies:
            if due <= now:
                self._send(reply, source)
            elif len(self._late) < _HELD:
                self._number += 1
                heappush(self._late, (due, self._number, reply, source, self._reply_control))
                self._more.set()
            else:
                self._counts.dropped["fault"] += 1

    def _send(self, reply: bytes, source: Source) -> None:
        try:
            self._reply(memoryview(reply), source)
        except OSError as exc:
            self._counts.count_send_error(exc, source, self._guard)
        else:
            self._counts.echoed += 1
            self._counts.bytes_echoed += len(reply)
