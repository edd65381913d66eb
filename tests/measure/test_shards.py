"""Shards in processes of their own: one schedule in all, a common start, and what is lost is said."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from anyio import create_task_group, fail_after, to_thread
from anyio.abc import TaskGroup

from anyecho import __version__
from anyecho.backends import Backend
from anyecho.errors import AnyechoError, ConnectError, LocalError, StartError, UsageError
from anyecho.measure import shard, shards
from anyecho.measure.bench import run_bench, run_shard
from anyecho.measure.control import BenchControl
from anyecho.measure.merge import merge_runs
from anyecho.measure.options import BenchOptions
from anyecho.measure.places import Place
from anyecho.measure.progress import Progress
from anyecho.measure.result import RunResult
from anyecho.measure.shard import Prepared
from anyecho.measure.shard_child import ShardJob
from anyecho.measure.shards import run_processes, run_shards, shares_of
from anyecho.server.server import Server
from tests.support.peers import TIMEOUT, until
from tests.support.process import wait_until


def bench_options(**options: Any) -> BenchOptions:
    return BenchOptions(**{"connections": 5, "warmup": 0.0} | options)


async def load(address: Any, processes: int, **options: Any) -> RunResult:
    arguments = {name: options.pop(name) for name in ("control", "backend") if name in options}
    with fail_after(40):
        return await run_processes(address, bench_options(**options), processes, **arguments)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Any:
    yield
    assert not shard._children


def pids() -> list[int]:
    """Return the numbers of the processes, by the numbers of their shards."""
    return [child.popen.pid for _, child in sorted(shard._children.items())]


async def until_loaded(server: Server) -> None:
    """Wait until each connection has echoed."""
    await until(lambda: sum(each.bytes_sent > 0 for each in server.peers()) == 5, TIMEOUT)


@pytest.mark.by_turns("backend", "anyio_backend", "carrier")
@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (2, {"rate": None, "requests": 301}),
        (3, {"rate": 3000.0, "requests": 301}),
        (2, {"rate": 1000.0, "duration": 0.301, "warmup": 0.1}),
        (3, {"rate": 3000.0, "requests": 301, "arrivals": "exponential", "seed": 7}),
        (1, {"rate": None, "requests": 301}),
    ],
    ids=["closed loop", "messages", "duration", "exponential", "one process"],
)
async def test_the_shards_together_send_the_whole_schedule(
    options: dict[str, Any], processes: int, server: Server, backend: Backend
) -> None:
    result = await load(server.addresses[0], processes, backend=backend, **options)
    counts = result.counts
    assert (counts.sent, counts.verified, counts.wrong, counts.lost, counts.outstanding) == (301, 301, 0, 0, 0)
    # A closed loop begins when its process runs, which a busy machine delays.
    is_closed = options["rate"] is None
    assert result.error == "" or (is_closed and result.error.endswith(" s apart: they were not one load"))
    assert result.latency.count == result.uncorrected.count == 301
    assert sum(each.verified for each in result.per_second) == 301
    assert (result.load.connections, result.load.rate) == (5, options["rate"])
    assert (result.load.shard_index, result.load.shard_count) == (0, 1)
    assert result.generator.backend == backend
    await until(lambda: server.stats.active == 0)
    if processes == 1:
        assert result.parts == ()
        return

    assert [each.name for each in result.parts] == [f"process {number + 1}" for number in range(processes)]
    assert [each.sent for each in result.parts] == [len(range(each, 301, processes)) for each in range(processes)]
    assert sum(each.connections for each in result.parts) == 5


@pytest.mark.by_turns("anyio_backend")
async def test_the_progress_of_shards_is_their_sum_and_never_falls(server: Server) -> None:
    seen: list[Progress] = []
    control = BenchControl(on_progress=lambda progress: seen.append(progress()))
    result = await load(server.addresses[0], 2, rate=200.0, duration=2.5, control=control)
    replies = [each.replies for each in seen]
    assert replies == sorted(replies)
    assert 0 < replies[-1] <= result.counts.verified
    assert seen[-1].p99 > 0


async def test_a_killed_shard_is_an_error_and_the_figures_are_those_of_the_others(server: Server) -> None:
    with fail_after(40):
        async with create_task_group() as tasks:

            async def kill_one() -> None:
                await until_loaded(server)
                os.kill(pids()[1], signal.SIGKILL)

            tasks.start_soon(kill_one)
            result = await load(server.addresses[0], 2, rate=50.0, requests=100)

    assert result.error == "shard 2 of 2 was lost: its process was ended by signal 9"
    assert (result.counts.sent, result.counts.verified, result.counts.lost) == (50, 50, 0)
    # Half of what was asked for; less where a busy machine delays the last message.
    assert result.generator.asked_rate == 50.0
    assert 0 < result.generator.achieved_rate <= 25
    assert [each.error for each in result.parts] == ["", "lost: its process was ended by signal 9"]


@pytest.mark.by_turns("anyio_backend")
async def test_the_loss_of_every_shard_is_an_error_of_one_line(server: Server) -> None:
    async def kill_all() -> None:
        await until_loaded(server)
        for pid in pids():
            os.kill(pid, signal.SIGKILL)

    async with create_task_group() as tasks:
        tasks.start_soon(kill_all)
        with pytest.raises(LocalError, match=r"^all shards were lost: its process was ended by signal 9$"):
            await load(server.addresses[0], 2, rate=50.0, requests=100)


@pytest.mark.by_turns("anyio_backend")
async def test_a_refused_connection_is_the_error_of_the_run() -> None:
    with pytest.raises(ConnectError, match=r"^cannot connect to tcp://127\.0\.0\.1:1: Connection refused$"):
        await load("127.0.0.1:1", 2, requests=10)


@pytest.mark.parametrize(
    ("options", "processes", "line"),
    [
        ({"connections": 2}, 3, "connections must be at least the number of shards, 3, not 2"),
        ({"cpu": "nothing"}, 1, "cpu must be cores like 1 or 0,2-3, not 'nothing'"),
    ],
)
async def test_wrong_options_are_errors_of_one_line(options: dict[str, Any], processes: int, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        await load("127.0.0.1:1", processes, **options)
    assert str(caught.value) == line


@pytest.mark.parametrize("moment", ["before", "measuring"])
@pytest.mark.by_turns("moment")
async def test_an_interrupted_run_has_what_all_shards_have_measured(moment: str, server: Server) -> None:
    control = BenchControl()

    async def interrupt() -> None:
        await until_loaded(server)
        control.interrupt()

    async with create_task_group() as tasks:
        if moment == "before":
            control.interrupt()
        else:
            tasks.start_soon(interrupt)
        result = await load(server.addresses[0], 2, rate=1000.0, duration=600.0, control=control)

    assert result.interrupted
    assert result.error == ""
    assert (result.counts.sent == 0) == (moment == "before")
    assert result.counts.verified + result.counts.outstanding == result.counts.sent
    assert len(result.parts) == 2


async def test_cancelling_the_run_ends_its_processes(server: Server) -> None:
    seen: list[int] = []

    async def cancel(tasks: TaskGroup) -> None:
        await until_loaded(server)
        seen.extend(pids())
        tasks.cancel_scope.cancel()

    async with create_task_group() as tasks:
        tasks.start_soon(cancel, tasks)
        await load(server.addresses[0], 2, duration=600.0)

    assert len(seen) == 2
    for pid in seen:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def meet(directory: Path) -> None:
    """Return once two processes have called this, and have imported this module."""
    (directory / str(os.getpid())).touch()
    wait_until(lambda: len([*directory.iterdir()]) == 2)


@pytest.mark.by_turns("anyio_backend")
async def test_shards_of_a_process_pool_begin_at_a_given_time(server: Server, tmp_path: Path) -> None:
    options = shares_of(bench_options(rate=500.0, requests=101), 2)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        await to_thread.run_sync(lambda: [*executor.map(meet, [tmp_path] * 2)])
        start_at = time.time() + 5.0
        futures = [
            executor.submit(
                run_shard, str(server.addresses[0]), share, backend="asyncio", shard=(index, 2), start_at=start_at
            )
            for index, share in enumerate(options)
        ]
        runs = await to_thread.run_sync(lambda: [each.result() for each in futures])
    merged = merge_runs(runs)
    assert (merged.counts.sent, merged.counts.verified, merged.error) == (101, 101, "")
    assert merged.started_at == pytest.approx(start_at, abs=0.05)


async def test_a_shard_that_is_late_for_the_start_says_so(server: Server) -> None:
    options = bench_options(requests=10)
    result = await run_bench(server.addresses[0], options, shard=(1, 2), start_at=time.time() - 5.0)
    assert result.counts.verified == 5
    assert re.fullmatch(r"the measurement began \d+\.\d+ s after the planned start", result.error)
    assert result.error.endswith(" s after the planned start")
    assert (result.load.shard_index, result.load.shard_count) == (1, 2)


@pytest.mark.parametrize(
    ("cores", "cpu", "processes", "expected", "note"),
    [
        ({3, 5}, None, 2, ["3", "5"], "the load has every core of its machine: a server there shares them"),
        ({3, 5, 7}, None, 2, ["3", "5"], ""),
        ({3, 5}, "5,7", 2, ["5", "7"], ""),
        ({3}, None, 2, [None, None], "the shards share their cores: there are 2 on 1 core"),
        ({3, 4}, "3-4", 3, ["3-4"] * 3, "the shards share their cores: there are 3 on 2 cores"),
        (None, None, 2, [None, None], "the shards are not pinned: this system cannot pin a process"),
    ],
)
def test_each_shard_has_a_core_of_its_own_where_there_are_enough(
    cores: set[int] | None,
    cpu: str | None,
    processes: int,
    expected: list[str | None],
    note: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if cores is None:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores, raising=False)
    seen = [shard.core_of(bench_options(cpu=cpu), (number, processes)) for number in range(processes)]
    assert seen == [(each, note) for each in expected]


def test_connections_and_their_rate_are_divided() -> None:
    shares = shares_of(bench_options(connections=8, connect_rate=30.0), 3)
    assert [(each.connections, each.connect_rate) for each in shares] == [(3, 10.0), (3, 10.0), (2, 10.0)]
    assert shares_of(bench_options(connect_rate=None), 2)[0].connect_rate is None


class Replies(Executor):
    """Answers each call with the next of `replies`; a call without a reply is never done."""

    def __init__(self, *replies: Any) -> None:
        self._replies = list(replies)
        self.jobs: list[Any] = []

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
        self.jobs.append(arguments)
        future: Future[Any] = Future()
        if self._replies:
            reply = self._replies.pop(0)
            if isinstance(reply, BaseException):
                future.set_exception(reply)
            else:
                future.set_result(reply())
        return future


async def gone() -> bool:
    return True


def place(*replies: Any, **fields: Any) -> Callable[[], Place]:
    """Return what makes a place: its replies are used up."""
    return lambda: Place(name="worker", executor=Replies(*replies), call=lambda function, key: None, **fields)


@pytest.mark.parametrize(
    ("at", "kind", "line"),
    [
        (place(ConnectError("refused")), ConnectError, "refused"),
        (place(ConnectError("refused"), is_remote=True), ConnectError, "worker: refused"),
        (place(ValueError("odd")), StartError, "worker cannot run a shard: ValueError: odd"),
        (place(LocalError("broken")), StartError, "worker was lost before the start: broken"),
        (place(is_lost=gone), StartError, "worker was lost before the start: it is gone"),
        (place(lambda: Prepared(0, 0), is_lost=gone), LocalError, "all shards were lost: it is gone"),
        (place(lambda: Prepared(0, 0), LocalError("broken")), LocalError, "all shards were lost: broken"),
    ],
)
async def test_what_happens_to_a_place_is_an_error_of_one_line(
    at: Callable[[], Place], kind: type[AnyechoError], line: str
) -> None:
    with fail_after(40), pytest.raises(kind) as caught:
        await run_shards("127.0.0.1:1", bench_options(), [at()])
    assert str(caught.value) == line


@pytest.mark.parametrize("replies", [[], [lambda: Prepared(0, 0)]], ids=["connecting", "measuring"])
async def test_an_interrupted_shard_that_has_no_result_in_time_is_lost(
    replies: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_RESULT_WITHIN", 0.0)
    control = BenchControl()
    control.interrupt()
    line = r"^all shards were lost: it was interrupted, and had no result within 0 s$"
    with fail_after(40), pytest.raises(LocalError, match=line):
        await run_shards("127.0.0.1:1", bench_options(), [place(*replies)()], control=control)


@pytest.mark.parametrize(
    ("offset", "note"),
    [(0.0, None), (9.5, "the clock of worker is 9.5"), (-9.5, "the clock of worker is 9.5")],
)
@pytest.mark.by_turns("anyio_backend")
async def test_the_clock_of_another_machine_is_compared(offset: float, note: str | None, server: Server) -> None:
    def prepared() -> Prepared:
        now = time.time() + offset
        return Prepared(now, now)

    result = await run_bench(server.addresses[0], bench_options(requests=5))
    merged = await run_shards("127.0.0.1:1", bench_options(), [place(prepared, lambda: result)()])
    assert [each[: len(note or "")] for each in merged.notes if "clock" in each] == ([note] if note else [])
    if note:
        assert ("ahead of" if offset > 0 else "behind") in merged.notes[-1]


def test_a_shard_of_another_version_is_refused() -> None:
    job = ShardJob(
        key="k", address="a", options=bench_options(), backend="asyncio", index=0, count=1, version="0.0.0"
    )
    with pytest.raises(StartError, match=f"^it has anyecho {__version__}, and the shard is one of anyecho 0.0.0$"):
        shard.prepare(job)


def test_a_shard_whose_parent_was_replaced_is_lost() -> None:
    with pytest.raises(LocalError, match=r"^its parent process was replaced$"):
        shard.finish("unknown", 0.0)
    shard.interrupt("unknown")
    shard.discard("unknown")
