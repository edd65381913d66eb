"""Run one load as several shards at the same time, and merge their results.

Shards connect first. When all have connected, each is told the common start; so no estimate of the time to connect
is needed. Each shard takes every n-th message of the one schedule, and its part of the connections.
"""

from __future__ import annotations

__all__ = ("run_processes", "run_shards", "shares_of")

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from typing import Any
from uuid import uuid4

from anyio import CancelScope, sleep, to_thread

from anyecho.address import Address
from anyecho.backends import Backend
from anyecho.errors import AnyechoError, LocalError, StartError, UsageError
from anyecho.measure import shard
from anyecho.measure.control import BenchControl
from anyecho.measure.merge import merge_runs
from anyecho.measure.options import BenchOptions
from anyecho.measure.places import Place, local_places
from anyecho.measure.progress import Progress
from anyecho.measure.result import Counts, RunResult
from anyecho.measure.shard import Prepared
from anyecho.measure.shard_child import ShardJob

#: Seconds between two looks at the shards.
_TICK = 0.02
#: Seconds that an interrupted shard has for its result.
_RESULT_WITHIN = 10.0
#: Seconds by which two clocks may differ before a note says so.
_SKEW = 0.05


async def run_processes(
    address: str | Address,
    options: BenchOptions,
    processes: int,
    *,
    backend: Backend = "asyncio",
    control: BenchControl | None = None,
) -> RunResult:
    """Run `run_bench` as that many processes of this machine. Raises its errors, and those of `run_shards`."""
    with local_places(processes) as places:
        return await run_shards(address, options, places, backend=backend, control=control)


async def run_shards(
    address: str | Address,
    options: BenchOptions,
    places: Sequence[Place],
    *,
    backend: Backend = "asyncio",
    control: BenchControl | None = None,
) -> RunResult:
    """Run a shard at each of `places`; return the merged result.

    A shard that is lost after the start is an `error` of the result, which has the figures of the remaining ones.

    Raises:
        UsageError: there are fewer connections than places.
        StartError: a place is lost before the start.
        LocalError: all shards are lost.
        AnyechoError: the error of a shard before the start.
    """
    control = control or BenchControl()
    run = _Shards(str(address), options, places, backend, control)
    try:
        await run.connect()
        return await run.measure()
    finally:
        with CancelScope(shield=True):
            await run.discard()


def shares_of(options: BenchOptions, count: int) -> list[BenchOptions]:
    """Return the options of each of `count` shards: its part of the connections. Raises `UsageError`."""
    if options.connections < count:
        text = f"connections must be at least the number of shards, {count}, not {options.connections}"
        raise UsageError(text, options=("connections",))

    rate = None if options.connect_rate is None else options.connect_rate / count
    return [
        replace(options, connections=len(range(index, options.connections, count)), connect_rate=rate)
        for index in range(count)
    ]


@dataclass
class _Member:
    """A shard at its place."""

    place: Place
    job: ShardJob
    asked_at: float = 0.0
    answered_at: float = 0.0
    prepared: Future[Prepared] = field(default_factory=Future)
    finished: Future[RunResult] = field(default_factory=Future)
    progress: Progress = field(default_factory=lambda: Progress(0, 0))
    #: Why there will be no result.
    lost: str = ""

    def on_answer(self, _: object) -> None:
        self.answered_at = time.time()


class _Shards:
    def __init__(
        self,
        address: str,
        options: BenchOptions,
        places: Sequence[Place],
        backend: Backend,
        control: BenchControl,
    ) -> None:
        self._warm_up = options.warmup
        self._control = control
        #: Until when an interrupted shard may give its result; None: not interrupted.
        self._deadline: float | None = None
        #: When the measurement begins, and the CPU time of the server at the first look after that.
        self._start_at = inf
        self._server_cpu: int | None = None
        key, shares = uuid4().hex, shares_of(options, len(places))
        self._members = [
            _Member(
                place,
                ShardJob(
                    key=f"{key}-{index}",
                    address=address,
                    options=share,
                    backend=backend,
                    index=index,
                    count=len(places),
                    place=place.on_machine,
                ),
            )
            for index, (place, share) in enumerate(zip(places, shares, strict=True))
        ]

    async def connect(self) -> None:
        """Return when all shards have connected, or the run is interrupted."""
        for each in self._members:
            each.asked_at = time.time()
            each.prepared = each.place.executor.submit(shard.prepare, each.job)
            each.prepared.add_done_callback(each.on_answer)
        await self._wait(lambda each: each.prepared, until_failure=True)
        for each in self._members:
            if each.prepared.done() and (error := _error(each.prepared)) is not None:
                raise _at(each.place, error)
            if each.lost and not self._control.interrupted:
                raise StartError(f"{each.place.name} was lost before the start: {each.lost}")

    async def measure(self) -> RunResult:
        """Start the shards that have connected; return the merged result of those that are not lost."""
        ready = [each for each in self._members if each.prepared.done()]
        start_at = time.time() + self._warm_up + max((each.place.latency for each in ready), default=0.0)
        self._start_at = start_at
        for each in ready:
            each.finished = each.place.executor.submit(shard.finish, each.job.key, start_at)
        await self._wait(lambda each: each.finished)
        server_cpu = self._control.server_cpu()
        for each in self._members:
            if each.finished.done() and (error := _error(each.finished)) is not None:
                each.lost = str(error) or type(error).__name__
        runs = [each.finished.result() for each in self._members if not each.lost]
        lost = {each.job.index: each.lost for each in self._members if each.lost}
        if not runs:
            raise LocalError(f"all shards were lost: {'; '.join(dict.fromkeys(lost.values()))}")

        merged = merge_runs(runs, [each.place.name for each in self._members], lost)
        return replace(
            merged,
            server_cpu_per_echo=self._cpu_per_echo(server_cpu, merged.counts) if not lost else None,
            notes=tuple(dict.fromkeys([*merged.notes, *self._notes()])),
        )

    def _cpu_per_echo(self, server_cpu: int | None, counts: Counts) -> float | None:
        echoes = counts.verified + counts.wrong + counts.late
        if server_cpu is None or self._server_cpu is None or not echoes:
            return None

        return (server_cpu - self._server_cpu) / echoes / 1e9

    async def discard(self) -> None:
        """End every process that is left."""
        for each in self._members:
            each.prepared.cancel()
            each.finished.cancel()
            await self._call(shard.discard, each)

    async def _wait(self, future_of: Callable[[_Member], Future[Any]], *, until_failure: bool = False) -> None:
        """Wait for the future of each shard that is not lost, or for the first that failed."""
        while waiting := [each for each in self._members if not each.lost and not future_of(each).done()]:
            if until_failure and any(
                each.prepared.done() and _error(each.prepared) is not None for each in self._members
            ):
                return

            if self._server_cpu is None and time.time() >= self._start_at:
                self._server_cpu = self._control.server_cpu()
            for each in waiting:
                if await each.place.is_lost():
                    each.lost = "it is gone"
            self._report_progress()
            await self._check_interrupted(waiting)
            # Once interrupted, the scope would end each sleep at once.
            with nullcontext() if self._control.interrupted else self._control.interruptible():
                await sleep(_TICK)

    def _report_progress(self) -> None:
        for each in self._members:
            each.progress = shard.progress(each.job.key) or each.progress
        parts = [each.progress for each in self._members]
        if any(each.replies for each in parts):
            self._control.on_progress(partial(Progress.of_all, parts))

    async def _check_interrupted(self, waiting: Sequence[_Member]) -> None:
        if not self._control.interrupted:
            return

        if self._deadline is None:
            self._deadline = time.monotonic() + _RESULT_WITHIN
            for each in self._members:
                await self._call(shard.interrupt, each)
        elif time.monotonic() > self._deadline:
            for each in waiting:
                each.lost = f"it was interrupted, and had no result within {_RESULT_WITHIN:g} s"

    async def _call(self, function: Callable[[str], None], member: _Member) -> None:
        await to_thread.run_sync(member.place.call, function, member.job.key)

    def _notes(self) -> Iterator[str]:
        for each in self._members:
            if each.prepared.done() and not each.prepared.cancelled():
                prepared = each.prepared.result()
                if prepared.note:
                    yield prepared.note
                # The order was sent before the shard began, and its answer came after the shard ended.
                ahead, behind = prepared.ended - each.answered_at, each.asked_at - prepared.began
                if max(ahead, behind) > _SKEW:
                    direction = "ahead of" if ahead > behind else "behind"
                    yield f"the clock of {each.place.name} is {max(ahead, behind):.3f} s {direction} this one"


def _error(future: Future[Any]) -> BaseException | None:
    """Return the error of a future that is done."""
    return CancelledError() if future.cancelled() else future.exception()


def _at(place: Place, error: BaseException) -> BaseException:
    """Return an error of one line, from before the start, that names a remote or lost place."""
    if not isinstance(error, AnyechoError):
        return StartError(f"{place.name} cannot run a shard: {type(error).__name__}: {error}")
    if isinstance(error, LocalError):
        return StartError(f"{place.name} was lost before the start: {error}")
    if isinstance(error, StartError) and place.is_remote:
        return type(error)(f"{place.name}: {error}")

    return error
