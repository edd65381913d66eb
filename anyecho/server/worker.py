"""A worker process, as its supervisor sees it: hear its states and totals, drain it, end it."""

from __future__ import annotations

__all__ = ("CHECKS", "Failure", "Launch", "Worker")

import logging
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Any

from anyio import CancelScope, Event, create_task_group, move_on_after, sleep
from anyio.abc import Process

from anyecho.codec import decode
from anyecho.errors import UsageError
from anyecho.net.lifeline import Lifeline
from anyecho.net.shared_counts import Row
from anyecho.server.answers import Answers
from anyecho.server.stats import Peer
from anyecho.server.totals import Totals
from anyecho.systemd.notify import StateReceiver
from anyecho.throttle import ThrottledLog

logger = logging.getLogger("anyecho.server")

#: The time limits of a worker are counted in so many checks, so that a stop of all processes counts as one.
CHECKS = 10
#: Seconds until a worker must be ready. It imports the handler of the user.
_START_LIMIT = 60.0
#: Seconds that a worker has, after its connections were to be closed, to end. A blocked log takes one of them.
_END_MARGIN = 2.0
#: Seconds to wait for totals, for which a scrape waits, and for thousands of peers.
_TOTALS_LIMIT, _PEERS_LIMIT = 0.5, 5.0


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a worker is started, and its limits in seconds.

    `command` gets the number of its lifeline as its last word; `descriptors` stay open in it. `job` is the first
    message to it.
    """

    command: Sequence[str]
    descriptors: Sequence[int]
    job: Mapping[str, Any]
    heartbeat_timeout: float
    #: From the order to drain until no connection is left.
    drain_limit: float = inf


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error, as a worker reports it: its text, the names of options in the text, whether they are at fault."""

    text: str
    options: tuple[str, ...] = ()
    is_usage: bool = False


class Worker:
    """A process from its start to its end. `run` must run as long."""

    def __init__(
        self,
        launch: Launch,
        process: Process,
        lifeline: Lifeline,
        states: StateReceiver,
        row: Row | None,
    ) -> None:
        self.pid = process.pid
        #: Set once it is ready, once it no longer accepts (it was told to drain, or drains by itself), at its end.
        self.ready, self.leaving, self.ended = Event(), Event(), Event()
        #: The last totals that it has reported.
        self.totals = Totals()
        #: The error that ends it, in its own words.
        self.failure: Failure | None = None
        self._launch = launch
        self._process = process
        self._lifeline = lifeline
        self._states = states
        self._answers = Answers(lifeline)
        self._warnings = ThrottledLog(logger)
        self._row = row
        self._silent_checks = 0
        #: Why the supervisor has killed it.
        self._killed_for = ""

    async def run(self) -> None:
        """Return once the process has ended. A cancellation kills it."""
        try:
            async with self._process, create_task_group() as tasks:
                for task in (self._hear_states, self._hear_lines, self._check_alive, self._check_drained):
                    tasks.start_soon(task)
                await self._wait_end()
                tasks.cancel_scope.cancel()
        finally:
            with CancelScope(shield=True):
                await self._hear_the_rest()
            self.leave()
            self.ended.set()
            if self._row is not None:
                self._row.counts.give_back(self._row)
            self._answers.end()
            self._lifeline.close()
            self._states.close()

    async def wait_ready(self) -> bool:
        """Return whether it became ready, and not its end."""
        async with create_task_group() as tasks:
            for event in (self.ready, self.ended):
                tasks.start_soon(_cancel_after, event, tasks.cancel_scope)

        return self.ready.is_set() and not self.ended.is_set()

    def admit(self) -> None:
        """Let other workers leave new connections to it, if it has fewer."""
        if self._row is not None and not self.leaving.is_set():
            self._row.activate()

    def leave(self) -> None:
        """Note that it does not accept, or will not."""
        self.leaving.set()
        if self._row is not None:
            self._row.deactivate()

    def drain(self) -> None:
        """Let it stop accepting, and end within its limit. Call it again to close its connections at once."""
        self.leave()
        self._send_signal(signal.SIGTERM)

    def kill(self, reason: str) -> None:
        if not self.ended.is_set():
            self._killed_for = reason
            if self.leaving.is_set():  # nothing else is logged of its end
                logger.warning("process %d is killed: %s", self.pid, reason)
            self._send_signal(signal.SIGKILL)

    async def ask_totals(self) -> Totals:
        """Return what it has counted until now, or until its last report if it does not answer soon."""
        await self._ask("totals", _TOTALS_LIMIT)
        return self.totals

    async def ask_peers(self) -> list[Peer]:
        """Return its peers, as many as it tells in time."""
        return [_peer(each) for each in await self._ask("peers", _PEERS_LIMIT)]

    def end_reason(self) -> str:
        """Why it has ended."""
        if self.failure is not None:
            return self.failure.text
        if self._killed_for:
            return self._killed_for

        status = self._process.returncode
        if status is not None and status < 0:
            return f"it was ended by signal {-status}"
        return f"it ended with status {status}"

    def end_cause(self) -> str:
        """The kind of `end_reason`, for statistics; ``drained`` if it drains, or has drained, by itself."""
        status = self._process.returncode
        if self._killed_for:
            return "stuck"
        if status is None or status == 0:
            return "drained"
        return "signal" if status < 0 else "failed"

    async def _wait_end(self) -> None:
        try:
            await self._process.wait()
        finally:
            if self._process.returncode is None:
                self._send_signal(signal.SIGKILL)
                with CancelScope(shield=True):
                    await self._process.wait()

    def _send_signal(self, number: int) -> None:
        # Not by a method of the process: asyncio of Python before 3.13 (gh-87744) asks for its status there, and
        # then reports the end of a process that has just ended as status 255.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def _ask(self, kind: str, within: float) -> list[Any]:
        if not self.ready.is_set() or self.ended.is_set():
            return []

        return await self._answers.ask(kind, within)

    async def _hear_states(self) -> None:
        while True:
            state = await self._states.receive()
            self._silent_checks = 0
            if state.get("READY") == "1":
                self.ready.set()
            if state.get("STOPPING") == "1":
                self.leave()

    async def _hear_lines(self) -> None:
        while (message := await self._lifeline.receive()) is not None:
            self._take(message)

    async def _hear_the_rest(self) -> None:
        """Read what it wrote before its end. (Its children might still hold its end of the socket.)"""
        scope = CancelScope(deadline=-inf)
        with scope:
            while (message := await self._lifeline.receive()) is not None:
                self._take(message)

    def _take(self, message: Mapping[str, Any]) -> None:
        if "totals" in message:
            try:
                self.totals = Totals.from_json(message["totals"])
            except UsageError as exc:  # a new version was installed: the supervisor is still of the old one
                self._warnings.warn("a worker counts what is in no metric: %s", exc)
        self._answers.take(message)
        if "failed" in message:
            self.failure = decode(Failure, message["failed"])

    async def _check_alive(self) -> None:
        await self._wait_checks(
            _START_LIMIT, until=self.ready, reason=f"it was not ready within {_START_LIMIT:g} s"
        )
        limit = self._launch.heartbeat_timeout
        await self._wait_checks(limit, until=self.leaving, reason=f"its event loop was stuck for {limit:g} s")

    async def _wait_checks(self, limit: float, *, until: Event, reason: str) -> None:
        """Kill it if it is silent for `limit` seconds before `until` is set."""
        self._silent_checks = 0
        while not until.is_set():
            with move_on_after(limit / CHECKS):
                await until.wait()
            self._silent_checks += 1
            if self._silent_checks > CHECKS and not until.is_set():
                self.kill(reason)
                return

    async def _check_drained(self) -> None:
        await self.leaving.wait()
        limit = self._launch.drain_limit + _END_MARGIN
        if limit < inf:
            await sleep(limit)
            self.kill(f"it still ran {limit:g} s after it began to drain")


def _peer(value: Mapping[str, Any]) -> Peer:
    address = value["address"]
    return Peer(**{**value, "address": tuple(address) if isinstance(address, list) else address})


async def _cancel_after(event: Event, scope: CancelScope) -> None:
    await event.wait()
    scope.cancel()
