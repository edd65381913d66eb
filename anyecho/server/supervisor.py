"""Keep worker processes running: one for each slot, restarted when it ends, replaced one by one in a roll.

The caller owns the listening sockets, which workers inherit. Signals, logs and options are up to the command line.
"""

from __future__ import annotations

__all__ = ("Supervisor", "open_supervisor")

import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TypeVar

from anyio import Event, Lock, create_task_group, move_on_after, sleep
from anyio.abc import TaskGroup

from anyecho.errors import AnyechoError, StartError, UsageError, unwrap_single
from anyecho.net.shared_counts import SharedCounts
from anyecho.server.launch import start_worker
from anyecho.server.stats import Peer, dropped_log_lines
from anyecho.server.totals import Totals, merge
from anyecho.server.worker import Launch, Worker
from anyecho.units import format_duration

T = TypeVar("T")

logger = logging.getLogger("anyecho.server")

#: Seconds before a worker that has ended is started anew: the first time, at most, and its age that resets it.
_FIRST_DELAY, _MAX_DELAY, _HEALTHY_AGE = 0.1, 30.0, 60.0
#: Seconds after which a worker that is not ready is a warning: a module of the user may wait for something.
_SLOW_START = 5.0
#: Seconds that a worker has to close its connections at once, before it is killed.
_ABORT_LIMIT = 2.0
#: Rows of shared counts for each slot: a worker, and those that drain. A worker without a row is not balanced.
_ROWS = 4


@dataclass(eq=False)
class _Slot:
    """The place of one worker, and of its successors."""

    number: int
    launch: Launch
    worker: Worker | None = None
    #: One start at a time.
    lock: Lock = field(default_factory=Lock)
    delay: float = _FIRST_DELAY

    @property
    def is_served(self) -> bool:
        return self.worker is not None and not self.worker.leaving.is_set()

    def next_delay(self) -> float:
        delay, self.delay = self.delay, min(self.delay * 2, _MAX_DELAY)
        return delay


@asynccontextmanager
async def open_supervisor(launches: Sequence[Launch], *, share_sockets: bool = False) -> AsyncIterator[Supervisor]:
    """Start a worker for each of `launches`; enter the block when all are ready. Leaving the block kills them.

    With `share_sockets`, they tell each other how many connections they have.

    Raises:
        StartError: a worker cannot be started, or ends before it is ready.
        UsageError: a worker says that its options are wrong.
    """
    with ExitStack() as opened, unwrap_single():
        counts = None
        if share_sockets:
            counts = SharedCounts.create(_ROWS * len(launches))
            opened.callback(counts.close)
        async with create_task_group() as tasks:
            supervisor = Supervisor(launches, tasks, counts)
            await supervisor._start()
            try:
                yield supervisor
            finally:
                tasks.cancel_scope.cancel()


class Supervisor:
    """The workers of a server, as `open_supervisor` yields them. Its methods return at once, unless they wait."""

    def __init__(self, launches: Sequence[Launch], tasks: TaskGroup, counts: SharedCounts | None) -> None:
        #: Workers that were started anew after an end that was not ordered, by cause.
        self.restarts: Counter[str] = Counter()
        self._slots = [_Slot(number, launch) for number, launch in enumerate(launches, 1)]
        self._tasks = tasks
        self._counts = counts
        #: All processes that run, those that drain included.
        self._workers: set[Worker] = set()
        self._past = Totals()
        self._closed = Event()
        self._stopping = Event()

    def ready(self) -> bool:
        """Whether a worker accepts connections."""
        return not self._stopping.is_set() and any(slot.is_served for slot in self._slots)

    async def totals(self) -> Totals:
        """Return the sum of what all workers have counted, those that have ended included."""
        await self._ask_all(Worker.ask_totals)
        # All at one instant: a worker that has ended meanwhile is counted once.
        running = [worker.totals for worker in self._workers]
        own = Totals(restarts=dict(self.restarts), log_lines_dropped=dropped_log_lines())
        return merge([self._past, *running, own])

    async def peers(self) -> AsyncIterator[list[Peer]]:
        """Yield the peers of all workers that answer."""
        for peers in await self._ask_all(Worker.ask_peers):
            yield peers

    async def roll(self) -> bool:
        """Replace the workers one by one: a new one is ready before the old one drains.

        The roll ends at a worker that does not become ready: it returns false, and the workers left serve on.
        """
        for slot in self._slots:
            if self._stopping.is_set():
                return False
            try:
                await self._replace(slot)
            except AnyechoError as exc:
                if self._stopping.is_set():
                    return False
                logger.error("the workers are not replaced: %s", exc, extra={"options": exc.options})
                return False

        return True

    def drain(self) -> None:
        """Let all workers drain and end; start none."""
        self._stopping.set()
        for worker in self._workers:
            worker.leave()  # all first: none leaves a connection of the backlog to another one
        for worker in self._workers:
            worker.drain()
        self._check_closed()

    async def abort(self) -> None:
        """Let all workers close their connections; kill those that do not end soon."""
        self.drain()
        await sleep(_ABORT_LIMIT)
        self.kill()

    def kill(self) -> None:
        """Kill all workers that still run, after `drain`."""
        for worker in self._workers:
            worker.kill("it did not close its connections in time")

    async def wait_closed(self) -> None:
        """Wait until `drain` was called and no worker runs."""
        await self._closed.wait()

    async def _start(self) -> None:
        async with create_task_group() as starting:
            for slot in self._slots:
                starting.start_soon(self._replace, slot)

    async def _replace(self, slot: _Slot, *, unless_served: bool = False) -> None:
        """Start a worker; once it is ready, drain the worker before it. Raises `StartError`, `UsageError`."""
        async with slot.lock:
            if self._stopping.is_set() or (unless_served and slot.is_served):
                return
            try:
                worker = await start_worker(slot.launch, os.environ, self._counts)
            except OSError as exc:
                raise StartError(f"worker {slot.number} cannot be started: {exc.strerror}") from exc

            self._workers.add(worker)
            self._tasks.start_soon(self._run, worker)
            if self._stopping.is_set():
                worker.drain()
            with move_on_after(_SLOW_START) as slow:
                await worker.wait_ready()
            if slow.cancelled_caught:
                text = "worker %d (process %d) is not ready after %s"
                logger.warning(text, slot.number, worker.pid, format_duration(_SLOW_START))
            if not await worker.wait_ready():
                raise self._error(slot, worker)

            logger.info("worker %d is process %d", slot.number, worker.pid)
            before, slot.worker = slot.worker, worker
            worker.admit()
            self._tasks.start_soon(self._keep, slot, worker)
            if before is not None and not before.leaving.is_set():
                before.drain()

    def _error(self, slot: _Slot, worker: Worker) -> AnyechoError:
        text = f"worker {slot.number} cannot start: {worker.end_reason()}"
        if worker.failure is None:
            return StartError(text)

        kind = UsageError if worker.failure.is_usage else StartError
        return kind(text, options=worker.failure.options)

    async def _run(self, worker: Worker) -> None:
        try:
            await worker.run()
        finally:
            self._workers.discard(worker)
            self._past = merge([self._past, worker.totals.after_end()])
            self._check_closed()

    async def _keep(self, slot: _Slot, worker: Worker) -> None:
        """Start a successor when `worker` no longer accepts, unless it was told to drain."""
        began = monotonic()
        await worker.leaving.wait()
        if self._stopping.is_set() or slot.worker is not worker:
            return

        self.restarts[worker.end_cause()] += 1
        if monotonic() - began >= _HEALTHY_AGE:
            slot.delay = _FIRST_DELAY
        if worker.ended.is_set():
            await self._pause(slot, f"worker {slot.number} (process {worker.pid}) has ended", worker.end_reason())
        while not (self._stopping.is_set() or slot.is_served):
            try:
                await self._replace(slot, unless_served=True)
            except AnyechoError as exc:
                await self._pause(slot, str(exc))

    async def _pause(self, slot: _Slot, *reasons: str) -> None:
        delay = slot.next_delay()
        if not self._stopping.is_set():
            logger.error("%s: starting another in %s", ": ".join(reasons), format_duration(delay))
            await sleep(delay)

    async def _ask_all(self, ask: Callable[[Worker], Awaitable[T]]) -> list[T]:
        answers: list[T] = []

        async def add(worker: Worker) -> None:
            answers.append(await ask(worker))

        async with create_task_group() as tasks:
            for worker in self._workers:
                tasks.start_soon(add, worker)

        return answers

    def _check_closed(self) -> None:
        if self._stopping.is_set() and not self._workers:
            self._closed.set()
