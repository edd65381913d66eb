"""``anyecho bench --dask`` on a scheduler and two workers of this machine, which the tests start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from anyio import to_thread

from anyecho.measure.result import Document, RunResult
from anyecho.server.server import Server
from tests.support.machine import needs
from tests.support.peers import until
from tests.support.process import Process, Processes, descendants, is_alive, wait_until

#: Seconds in which a program that imports distributed is ready, on a machine that is busy with other tests.
PATIENCE = 120.0

#: distributed is of the extra cluster, which the extra test includes.
needs_distributed = needs(find_spec("distributed") is not None, "distributed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


class Cluster:
    """A scheduler and its workers, each a process."""

    def __init__(self, directory: Path, processes: Processes) -> None:
        self._directory = directory
        self._processes = processes
        self.workers: list[Process] = []
        file = directory / "scheduler.json"
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
        wait_until(lambda: file.exists() and file.read_text().endswith("}"), PATIENCE)
        self.address = str(json.loads(file.read_text())["address"])

    def complete(self) -> None:
        """Start workers until two are alive."""
        self.workers = [each for each in self.workers if each.popen.poll() is None]
        while len(self.workers) < 2:
            words = ("worker", self.address, "--host", "127.0.0.1", "--no-nanny", "--nthreads", "1")
            worker, log = self._start(*words)
            wait_until(partial(_is_registered, log), PATIENCE)
            self.workers.append(worker)

    def _start(self, *words: str) -> tuple[Process, Path]:
        log = self._directory / f"{words[0]}.{len(list(self._directory.iterdir()))}.log"
        with log.open("wb") as file:
            command = [sys.executable, "-m", "dask", *words, "--no-dashboard"]
            process = Process(subprocess.Popen(command, stdout=file, stderr=file, cwd=self._directory))
        self._processes.adopt(process)
        return process, log


def _is_registered(log: Path) -> bool:
    return "Registered to" in log.read_text()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    processes = Processes(fallback=False)
    try:
        yield Cluster(tmp_path_factory.mktemp("cluster"), processes)
    finally:
        processes.close()


@pytest.fixture
def cluster(running: Cluster) -> Cluster:
    """A cluster with two workers."""
    running.complete()
    return running


def words(address: object, cluster: Cluster, backend: str, *more: str) -> list[str]:
    load = ["-c", "5", "--warmup", "0", "--backend", backend]
    return ["bench", str(address), *load, "--dask", cluster.address, *more]


def only_run(file: Path) -> RunResult:
    [run] = Document.from_json(file.read_bytes()).runs
    return run


async def until_loaded(server: Server) -> None:
    """Wait until each connection has echoed."""
    await until(lambda: sum(each.bytes_sent > 0 for each in server.peers()) == 5, PATIENCE)


@needs_distributed
@pytest.mark.by_turns("anyio_backend", "carrier", "backend")
async def test_the_workers_of_a_cluster_send_one_schedule(
    backend: str, server: Server, cluster: Cluster, processes: Processes, tmp_path: Path
) -> None:
    file = tmp_path / "a.json"
    process = processes.start(
        *words(server.addresses[0], cluster, backend, "-n", "301", "-r", "1k", "-o", str(file))
    )
    output, errors = await to_thread.run_sync(partial(process.popen.communicate, timeout=PATIENCE))
    assert (process.popen.returncode, errors) == (0, b""), output
    run = only_run(file)
    assert (run.counts.sent, run.counts.verified, run.counts.lost, run.error) == (301, 301, 0, "")
    assert run.latency.count == 301
    assert (run.load.connections, run.generator.backend) == (5, backend)
    assert sorted((each.sent, each.connections) for each in run.parts) == [(150, 2), (151, 3)]
    assert all(each.name.startswith("worker tcp://127.0.0.1:") and each.host for each in run.parts)
    assert not [each for worker in cluster.workers for each in descendants(worker.pid)]


@needs_distributed
@pytest.mark.by_turns("anyio_backend", "carrier", "backend")
async def test_a_killed_worker_is_reported_and_the_rest_is_complete(
    backend: str, server: Server, cluster: Cluster, processes: Processes
) -> None:
    process = processes.start(*words(server.addresses[0], cluster, backend, "-n", "500", "-r", "100"))
    await until_loaded(server)
    worker = cluster.workers[0]
    children = descendants(worker.pid)
    worker.popen.kill()
    output, errors = await to_thread.run_sync(partial(process.popen.communicate, timeout=PATIENCE))
    text = output.decode()
    assert (process.popen.returncode, errors) == (1, b"")
    assert "of 2 was lost: it is gone" in text
    assert "250 sent: 250 verified" in text
    assert "of 100.0/s asked" in text
    assert children
    await until(lambda: not any(map(is_alive, children)))


@needs_distributed
@pytest.mark.by_turns("anyio_backend", "carrier", "backend")
async def test_ctrl_c_ends_the_shards_of_a_cluster_with_the_figures_so_far(
    backend: str, server: Server, cluster: Cluster, processes: Processes
) -> None:
    process = processes.start(*words(server.addresses[0], cluster, backend, "-d", "600"), start_new_session=True)
    await until_loaded(server)
    children = [each for worker in cluster.workers for each in descendants(worker.pid)]
    os.killpg(process.pid, signal.SIGINT)
    output, errors = await to_thread.run_sync(partial(process.popen.communicate, timeout=PATIENCE))
    assert (process.popen.returncode, errors) == (130, b"")
    assert b"interrupted" in output
    assert len(children) == 2
    await until(lambda: not any(map(is_alive, children)))


@needs_distributed
@pytest.mark.by_turns("backend")
def test_a_refused_connection_of_a_worker_is_one_line(backend: str, cluster: Cluster, processes: Processes) -> None:
    status, output, errors = processes.run(*words("127.0.0.1:1", cluster, backend))
    assert (status, output, errors.count("\n")) == (3, b"", 1)
    assert errors.startswith("anyecho: worker tcp://127.0.0.1:")
    assert errors.endswith(": cannot connect to tcp://127.0.0.1:1: Connection refused\n")


@needs_distributed
@pytest.mark.by_turns("backend")
def test_a_scheduler_that_is_not_there_is_one_line(backend: str, processes: Processes) -> None:
    status, output, errors = processes.run(
        "bench", "127.0.0.1:1", "--dask", "tcp://127.0.0.1:1", "--backend", backend
    )
    assert (status, output, errors.count("\n")) == (3, b"", 1)
    assert errors.startswith("anyecho: cannot connect to the Dask scheduler tcp://127.0.0.1:1: ")


@pytest.mark.by_turns("backend")
def test_a_missing_package_is_one_line_with_the_command_that_installs_it(
    backend: str, processes: Processes
) -> None:
    process = processes.start(
        "bench",
        "127.0.0.1:1",
        "--dask",
        "tcp://127.0.0.1:1",
        "--backend",
        backend,
        before="import sys; sys.modules['distributed'] = None\n",
    )
    assert process.errors() == "anyecho: distributed is not installed: pip install 'anyecho[cluster]'\n"
    assert process.wait() == 3
