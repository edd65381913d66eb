"""One run of a load: connect, warm up, measure, wait for the last replies, and evaluate the stamps."""

from __future__ import annotations

__all__ = ("load_of", "run_bench", "run_shard")

import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from itertools import chain
from time import process_time_ns
from typing import Literal

from anyio import sleep

from anyecho.address import Address, UDPAddress, UnixAddress, parse_address
from anyecho.backends import Backend, run
from anyecho.client.options import check_options
from anyecho.errors import unwrap_single
from anyecho.measure.control import BenchControl
from anyecho.measure.generator import cores_available, pinned, without_gc
from anyecho.measure.opening import OpenConnection, Opened, open_connections
from anyecho.measure.options import BenchOptions
from anyecho.measure.outcome import Measured, result_of
from anyecho.measure.pacer import Pacer, busy_wait_for
from anyecho.measure.progress import progress_of
from anyecho.measure.result import Load, RunResult
from anyecho.measure.schedule import due_times
from anyecho.measure.traffic import Traffic
from anyecho.net.exclusive import ExclusivePoller
from anyecho.net.poller import Fallback, Poller, open_poller
from anyecho.net.timer import open_timer
from anyecho.validation import check_kind

#: Seconds between two looks at whether a run is over: while messages are sent, and after that. The stamps say when
#: it was over.
_TICK, _LAST_TICK = 0.05, 0.002
#: Nanoseconds after which an open loop begins, so that its first message is not late; and for reading CPU times
#: before it: the timers of event loops are up to 5 ms late.
_LEAD, _READING = 10_000_000, 6_000_000


async def run_bench(
    address: str | Address,
    options: BenchOptions | None = None,
    *,
    backend: str = "",
    shard: tuple[int, int] = (0, 1),
    start_at: float | Callable[[], Awaitable[float]] | None = None,
    control: BenchControl | None = None,
    exclusive: bool = False,
) -> RunResult:
    """Run one load against the server at `address`; return its result, also if the load failed in part.

    `backend` is the name of the running one, for the result. A `shard` (index, count) sends its part of the
    schedule, on connections of its own. The measurement begins after connections and warm-up, or at `start_at`, in
    seconds since 1970, so that shards can begin together; a function is called when the connections are open, and
    returns that time. A start that is too early for the warm-up is an error of the result. An `exclusive` load
    costs less and is paced more exactly: other tasks of the event loop run every few milliseconds only.

    Raises:
        AddressError: `address` is not an address.
        UsageError: `options` are not `BenchOptions`, have no effect on `address`, or name cores that are not there.
        ConnectError: the first connection is not accepted within the limits of `options.connect`.
        CertificateError: a file of the TLS options cannot be used.
        StartError: no descriptor is left for epoll.
    """
    address = parse_address(address)
    options = BenchOptions() if options is None else options
    check_kind(options, BenchOptions)
    check_options(options.connect, address)
    with pinned(options.cpu):
        return await _Run(address, options, backend, shard, start_at, control or BenchControl(), exclusive).run()


def run_shard(
    address: str, options: BenchOptions, *, backend: Backend, shard: tuple[int, int], start_at: float | None
) -> RunResult:
    """Run `run_bench` in a new event loop: a function for the workers of an executor. Raises its errors."""
    job = partial(run_bench, address, options, backend=backend, shard=shard, start_at=start_at, exclusive=True)
    return run(job, backend=backend)


class _Run:
    def __init__(
        self,
        address: Address,
        options: BenchOptions,
        backend: str,
        shard: tuple[int, int],
        start_at: float | Callable[[], Awaitable[float]] | None,
        control: BenchControl,
        exclusive: bool,
    ) -> None:
        self._address = address
        self._options = options
        self._backend = backend
        self._shard = shard
        self._start_at = start_at
        self._control = control
        self._exclusive = exclusive
        timeout = options.connect.timeout
        self._timeout = None if timeout is None else int(timeout * 1e9)
        self._traffic = Traffic(
            size=options.size,
            pipeline=options.pipeline,
            is_open_loop=options.rate is not None,
            timeout=self._timeout,
            seed=options.seed + shard[0],
        )
        self._pacer: Pacer | None = None
        self._cpu_before = 0
        self._server_cpu_before: int | None = None
        self._start = 0
        self._has_ended_early = False
        #: Nanoseconds by which the start was too late for `start_at`.
        self._start_delay = 0

    async def run(self) -> RunResult:
        with unwrap_single():
            return await self._run()

    async def _run(self) -> RunResult:
        control = self._control
        async with (
            open_poller(ExclusivePoller if self._exclusive else None) as poller,
            open_connections(
                self._address, self._options, self._traffic, poller, control.interruptible()
            ) as opened,
        ):
            with without_gc():
                if not control.interrupted:
                    await self._load(opened.connections, poller)
                now = self._traffic.clock()
                measured = self._measured(opened, now)

        count = len(opened.connections)
        return result_of(measured, load_of(self._address, self._options, connections=count, shard=self._shard))

    async def _load(self, connections: Sequence[OpenConnection], poller: Poller | Fallback) -> None:
        options, traffic = self._options, self._traffic
        with self._control.interruptible():
            await self._plan_start()
        if self._control.interrupted:
            return

        async with AsyncExitStack() as stack:
            if options.rate is None:
                if options.warmup:
                    self._begin(connections)
                if not await self._sleep_until_start():
                    return
                # Now, not at the planned time: every message from here on is counted.
                self._start = traffic.clock()
                if options.requests is not None:
                    index, count = self._shard
                    traffic.left = len(range(index, options.requests, count))
                if options.duration is not None:
                    traffic.deadline = self._start + int(options.duration * 1e9)
                if not options.warmup:
                    self._begin(connections)
            else:
                cores = (os.cpu_count() or 1) if options.cpu is not None else cores_available()
                self._pacer = pacer = Pacer(self._due_times(options.rate), self._start, connections, traffic)
                wait = busy_wait_for(options.rate / self._shard[1], cores)
                if pacer.next_due is not None:
                    await stack.enter_async_context(open_timer(poller, pacer.next_due, pacer, busy_wait=wait))
                if not await self._sleep_until_start():
                    return
            await self._wait_until_over(connections)

    async def _plan_start(self) -> None:
        planned = self._start_at
        if callable(planned):
            planned = await planned()
        now = self._traffic.clock()
        earliest = now + _LEAD + int(self._options.warmup * 1e9)
        start = earliest if planned is None else now + int((planned - time.time()) * 1e9)
        self._start = max(start, earliest)
        self._start_delay = self._start - start

    def _begin(self, connections: Sequence[OpenConnection]) -> None:
        for connection in connections:
            connection.start()

    def _due_times(self, rate: float) -> Iterator[int]:
        """Yield the due times after the start; those of the warm-up are negative."""
        options = self._options
        times = partial(due_times, rate, options.arrivals, shard=self._shard)
        warm_up = times(seconds=options.warmup, messages=None, seed=(options.seed, "warm-up"))
        measured = times(seconds=options.duration, messages=options.requests, seed=options.seed)
        before = int(options.warmup * 1e9)
        return chain((time - before for time in warm_up), measured)

    async def _sleep_until_start(self) -> bool:
        """Return whether the start has come; false after an interruption. CPU times are read just before it."""
        with self._control.interruptible():
            await sleep(max(self._start - _READING - self._traffic.clock(), 0) / 1e9)
        if not self._control.interrupted:
            self._server_cpu_before, self._cpu_before = self._control.server_cpu(), process_time_ns()
        return not self._control.interrupted

    async def _wait_until_over(self, connections: Sequence[OpenConnection]) -> None:
        """Return when no message is outstanding any more, or none of those outstanding can be in time."""
        control, traffic = self._control, self._traffic
        while not (control.interrupted or traffic.is_saturated or all(each.stopped for each in connections)):
            is_sending = self._is_sending()
            is_outstanding = any(each.outstanding for each in connections)
            if not (is_sending or is_outstanding):
                return
            # In a closed loop each reply makes a message, so the last send says when the last reply came.
            if is_outstanding and not (is_sending and self._pacer) and self._is_quiet(connections):
                return

            now = traffic.clock()
            for each in connections:
                each.tick(now)
            control.on_progress(partial(progress_of, connections))
            with control.interruptible():
                await sleep(min(_TICK, traffic.seconds_left(now)) if is_sending else _LAST_TICK)

        is_ended = control.interrupted or traffic.is_saturated
        self._has_ended_early = not is_ended and self._is_sending()

    def _is_sending(self) -> bool:
        if self._pacer is not None:
            return self._pacer.next_due is not None

        deadline = self._traffic.deadline
        return self._traffic.left != 0 and (deadline is None or self._traffic.clock() < deadline)

    def _is_quiet(self, connections: Sequence[OpenConnection]) -> bool:
        """Return whether the last message so far has timed out."""
        last_due = max((each.due[-1] for each in connections if each.due), default=self._start)
        return self._timeout is not None and self._traffic.clock() > last_due + self._timeout

    def _measured(self, opened: Opened, now: int) -> Measured:
        traffic, options = self._traffic, self._options
        cpu = process_time_ns() - self._cpu_before
        before, after = self._server_cpu_before, self._control.server_cpu()
        if not self._cpu_before:  # interrupted before the start
            cpu, self._start = 0, now
        end = now if options.duration is None else min(self._start + int(options.duration * 1e9), now)
        if self._pacer is not None and options.requests is not None:
            end = min(self._pacer.last_due, end)
        warm_up = sum(sum(due < self._start for due in each.due) for each in opened.connections)
        return Measured(
            records=opened.connections,
            start=self._start,
            end=end,
            now=now,
            started_at=time.time() - (now - self._start) / 1e9,
            timeout=self._timeout,
            lags=traffic.lags[warm_up:],
            cpu_share=cpu / max(now - self._start, 1),
            server_cpu=None if after is None or before is None else after - before,
            is_pinned=options.cpu is not None,
            backend=self._backend,
            failure=traffic.first_failure,
            other_failures=(*self._start_failures(), *map(str, opened.failures[:1])),
            connect_failed=len(opened.failures),
            interrupted=self._control.interrupted,
            saturated=traffic.is_saturated,
            ended_early=self._has_ended_early,
        )

    def _start_failures(self) -> Iterator[str]:
        if self._start_delay:
            yield f"the measurement began {self._start_delay / 1e9:.3f} s after the planned start"


def load_of(address: Address, options: BenchOptions, *, connections: int, shard: tuple[int, int] = (0, 1)) -> Load:
    """Return the configuration of a run as its result has it; `connections` are those opened."""
    return Load(
        address=str(address),
        transport=_transport(address),
        connections=connections,
        size=options.size,
        pipeline=options.pipeline,
        rate=options.rate,
        arrivals=options.arrivals,
        duration=options.duration,
        requests=options.requests,
        warm_up=options.warmup,
        timeout=options.connect.timeout,
        seed=options.seed,
        shard_index=shard[0],
        shard_count=shard[1],
    )


def _transport(address: Address) -> Literal["tcp", "tls", "unix", "udp"]:
    if isinstance(address, UDPAddress):
        return "udp"
    if address.tls:
        return "tls"

    return "unix" if isinstance(address, UnixAddress) else "tcp"
