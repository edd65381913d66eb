"""A server in a process of its own: where it runs, what it costs, and that it never outlives its load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest
from anyio import CancelScope, create_task_group, fail_after

from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.errors import StartError, UsageError
from anyecho.measure import own_server
from anyecho.measure.bench import run_bench
from anyecho.measure.control import BenchControl
from anyecho.measure.options import BenchOptions
from anyecho.measure.own_server import OwnServer, Placement, open_own_server, placement
from anyecho.measure.series_options import Carrier, OwnServerOptions
from anyecho.net.tls.contexts import TLSClientOptions
from tests.support.machine import needs, skip
from tests.support.process import TIMEOUT, is_alive, wait_until

#: Starts a server, prints its process number, and waits for a signal.
WAITING = """
import signal, anyio
signal.signal(signal.SIGINT, signal.default_int_handler)  # may be ignored, as in a script's background job
from anyecho.measure.own_server import open_own_server
async def main():
    async with open_own_server() as server:
        print(server.pid, flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""


@pytest.mark.parametrize("carrier", ["tcp", "unix", "tls", "udp"])
async def test_the_server_echoes_on_each_carrier_and_ends_with_the_block(carrier: Carrier) -> None:
    if carrier == "tls":
        pytest.importorskip("trustme")
    options = ConnectOptions(tls=TLSClientOptions(insecure=carrier == "tls"))
    async with open_own_server(OwnServerOptions(carrier=carrier)) as server:
        assert server.address.startswith(carrier)
        async with await connect(server.address, options=options) as client:
            await client.exchange(b"hello")
        assert server.failure() == ""
    assert not is_alive(server.pid)


@pytest.mark.by_turns("anyio_backend")
async def test_a_run_has_the_cpu_time_of_the_server_per_echo() -> None:
    async with open_own_server() as server:
        control = BenchControl()
        control.server_cpu = server.cpu_ns
        options = BenchOptions(requests=2000, warmup=0.0, connections=2)
        before = server.cpu_ns()
        result = await run_bench(server.address, options, control=control)
        after = server.cpu_ns()
    if before is None or after is None:
        skip("the CPU time of another process")
    assert result.counts.verified == 2000
    assert result.server_cpu_per_echo is not None
    assert 0 < result.server_cpu_per_echo * 2000 <= (after - before) / 1e9 + 1e-9


@pytest.mark.by_turns("anyio_backend")
async def test_a_run_against_another_server_has_no_cpu_time_of_it() -> None:
    async with open_own_server() as server:
        result = await run_bench(server.address, BenchOptions(requests=10, warmup=0.0))
    assert result.server_cpu_per_echo is None


async def test_the_server_ends_if_the_block_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_own_server() as server:
            raise ZeroDivisionError
    assert not is_alive(server.pid)


async def test_the_server_ends_if_the_block_is_cancelled() -> None:
    with CancelScope() as scope:
        async with open_own_server() as server:
            scope.cancel()
            await connect(server.address)
    assert not is_alive(server.pid)


async def test_a_cancelled_start_leaves_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    spawn = own_server._spawn

    def remember(*args: Any) -> subprocess.Popen[bytes]:
        process = spawn(*args)
        started.append(process.pid)
        tasks.cancel_scope.cancel()
        return process

    monkeypatch.setattr(own_server, "_spawn", remember)
    async with create_task_group() as tasks, open_own_server():
        raise AssertionError("the start was not cancelled")
    [pid] = started
    assert not is_alive(pid)


async def test_a_server_that_cannot_start_is_one_line_with_its_own_last_line() -> None:
    server = OwnServer(["serve", "-b", "unix:/nowhere/socket"], None)
    with pytest.raises(
        StartError, match=r"^cannot start a server: the server ended with status \d: .*/nowhere/socket"
    ):
        await server.wait_ready()
    await server.end()


async def test_a_stopped_server_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_server, "_END_TIMEOUT", 0.1)
    with fail_after(TIMEOUT):
        async with open_own_server() as server:
            os.kill(server.pid, signal.SIGSTOP)
    assert not is_alive(server.pid)


@needs(sys.platform == "linux", "a signal at the end of a pipe that ends a process")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_when_its_load_is_killed(kill: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as load:
        assert load.stdout is not None
        pid = int(load.stdout.readline())
        assert is_alive(pid)
        load.send_signal(kill)
        wait_until(lambda: not is_alive(pid))


@pytest.mark.parametrize(
    ("available", "cpu", "processes", "expected"),
    [
        ({0, 1}, None, 1, Placement("1", 0, "the load runs on core 1, its own server on core 0")),
        ({2, 5, 7}, "2,7", 1, Placement("2,7", 5, "the load runs on cores 2,7, its own server on core 5")),
        ({3}, None, 1, Placement(None, None, "the load and its own server share their cores")),
        ({0, 1}, "0-1", 1, Placement("0-1", None, "the load and its own server share their cores")),
        ({2, 5, 7}, None, 2, Placement("5,7", 2, "the load runs on cores 5,7, its own server on core 2")),
        ({2, 5, 7}, None, 4, Placement("5,7", 2, "the load runs on cores 5,7, its own server on core 2")),
    ],
)
def test_load_and_server_run_on_different_cores_if_there_are_two(
    available: set[int], cpu: str | None, processes: int, expected: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: available, raising=False)
    assert placement(cpu, processes) == expected


def test_a_wrong_list_of_cores_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cpu must be cores"):
        placement("x")


@pytest.mark.by_turns("anyio_backend")
async def test_the_server_runs_on_its_core() -> None:
    if not hasattr(os, "sched_getaffinity"):
        skip("sched_setaffinity")
    core = min(os.sched_getaffinity(0))
    async with open_own_server(core=core) as server:
        assert os.sched_getaffinity(server.pid) == {core}
