"""``anyecho bench`` in several processes, and as shards whose files are merged: figures, errors, signals."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from anyecho.measure.result import Document
from tests.cli.conftest import Run
from tests.support.process import Process, Processes, descendants, is_alive, wait_until

LOAD = ("-c", "4", "--warmup", "0")


@pytest.fixture
def address(addresses: dict[str, str]) -> str:
    return addresses["tcp"]


def read(path: Path) -> Document:
    return Document.from_json(path.read_bytes(), str(path))


@pytest.mark.by_turns("backend")
def test_processes_share_one_load_and_each_has_a_row(
    backend: str, address: str, processes: Processes, tmp_path: Path
) -> None:
    words = ("bench", address, *LOAD, "-n", "200", "-r", "2k", "--processes", "2", "--backend", backend)
    status, output, errors = processes.run(*words, "-o", str(tmp_path / "a.json"))
    assert (status, errors) == (0, "")
    assert re.search(r"^process 2 +100 ", output.decode(), re.M)
    [run] = read(tmp_path / "a.json").runs
    assert (run.counts.sent, run.counts.verified, run.load.connections) == (200, 200, 4)
    assert [(each.name, each.sent, each.connections) for each in run.parts] == [
        ("process 1", 100, 2),
        ("process 2", 100, 2),
    ]


@pytest.mark.by_turns("backend")
def test_processes_load_an_own_server(backend: str, processes: Processes, tmp_path: Path) -> None:
    words = ("bench", *LOAD, "-n", "100", "--processes", "2", "--backend", backend)
    assert processes.run(*words, "-o", str(tmp_path / "a.json"))[0] == 0
    [run] = read(tmp_path / "a.json").runs
    assert run.counts.verified == 100
    assert run.load.server_backend == "asyncio"
    assert run.server_cpu_per_echo is not None


@pytest.mark.by_turns("backend")
def test_a_refused_connection_of_a_process_is_one_line(backend: str, processes: Processes) -> None:
    words = ("bench", "127.0.0.1:1", "--processes", "2", "--backend", backend)
    line = "anyecho: cannot connect to tcp://127.0.0.1:1: Connection refused\n"
    assert processes.run(*words) == (3, b"", line)


def loading(processes: Processes, address: str, backend: str) -> tuple[Process, list[int]]:
    """Return a load of two processes that has begun, and their numbers."""
    server = address.rpartition(":")[2]
    words = ("bench", address, *LOAD, "-d", "600", "--processes", "2", "--backend", backend)
    process = processes.start(*words, start_new_session=True)
    wait_until(lambda: established(int(server)) >= 4)
    return process, descendants(process.pid)


def established(port: int) -> int:
    """Return the number of connections to the IPv4 loopback `port`."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2] == f"0100007F:{port:04X}" and row[3] == "01" for row in rows)


def send_to_the_terminal(pid: int) -> None:
    os.killpg(pid, signal.SIGINT)


@pytest.mark.by_turns("backend")
@pytest.mark.parametrize(
    ("send", "status"), [(send_to_the_terminal, 130), (lambda pid: os.kill(pid, signal.SIGTERM), 143)]
)
def test_a_signal_ends_all_processes_with_the_figures_so_far(
    backend: str, send: Callable[[int], None], status: int, address: str, processes: Processes
) -> None:
    process, children = loading(processes, address, backend)
    assert len(children) == 2
    send(process.pid)
    output, errors = process.popen.communicate(timeout=20)
    assert (process.popen.returncode, errors) == (status, b"")
    assert b"process 1" in output
    assert b"interrupted" in output
    assert not any(map(is_alive, children))


@pytest.mark.by_turns("backend")
def test_no_process_outlives_a_killed_load(backend: str, address: str, processes: Processes) -> None:
    process, children = loading(processes, address, backend)
    process.signal(signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, children)))
    process.wait()
    assert process.errors() == ""


@pytest.mark.by_turns("backend")
def test_a_killed_process_is_reported_and_the_rest_is_complete(
    backend: str, address: str, processes: Processes
) -> None:
    words = ("bench", address, *LOAD, "-n", "600", "-r", "100", "--processes", "2", "--backend", backend)
    process = processes.start(*words)
    wait_until(lambda: established(int(address.rpartition(":")[2])) >= 4)
    lost, _ = sorted(descendants(process.pid))
    os.kill(lost, signal.SIGKILL)
    output, errors = process.popen.communicate(timeout=40)
    text = output.decode()
    if process.popen.returncode == 3:  # before the start: no figures are better than half of them
        assert "was lost before the start: its process was ended by signal 9" in errors.decode()
    else:
        assert (process.popen.returncode, errors) == (1, b"")
        assert "of 2 was lost: its process was ended by signal 9" in text
        assert "300 sent: 300 verified" in text


@pytest.mark.by_turns("backend")
def test_files_of_shards_are_merged(backend: str, address: str, processes: Processes, tmp_path: Path) -> None:
    files = [str(tmp_path / f"{number}.json") for number in (1, 2)]
    words = ("bench", address, *LOAD, "-n", "201", "-r", "1k", "--backend", backend, "--start-at", "+4s")
    started = [
        processes.start(*words, "--shard", f"{number}/2", "-o", file) for number, file in enumerate(files, 1)
    ]
    outputs = [each.popen.communicate(timeout=40) for each in started]
    assert [each.popen.returncode for each in started] == [0, 0], outputs
    assert [read(Path(each)).runs[0].counts.sent for each in files] == [101, 100]
    assert b"shard 2 of 2" in outputs[1][0]

    # `+4s` is from the start of each process, which may differ by more than shards may.
    merged = str(tmp_path / "merged.json")
    processes.run("report", "--merge", *files, "--json", merged)
    [run] = read(Path(merged)).runs
    assert (run.counts.sent, run.counts.verified, run.load.connections) == (201, 201, 4)
    assert [(each.name, each.sent) for each in run.parts] == [("shard 1 of 2", 101), ("shard 2 of 2", 100)]

    status, _, errors = processes.run("report", "--merge", files[0], files[0])
    assert (status, errors) == (2, "anyecho: cannot merge: shard 1 of 2 is there twice\n")
    status, output, _ = processes.run("report", "--merge", files[1])
    assert b"of 2 shards, one is missing: 1" in output


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--processes", "0"), "--processes must be 1 or more, not 0"),
        (("--shard", "1/2"), "--shard needs the address of a server: its own is on this machine"),
        (("--dask", "tcp://a:1"), "--dask needs the address of a server: its own is on this machine"),
        (
            ("127.0.0.1:1", "--shard", "1/2", "-c", "1,2"),
            "--shard is of a single run: give no lists, repeat, matrix or find_rate",
        ),
        (
            ("127.0.0.1:1", "--start-at", "+9s", "--repeat", "2"),
            "--start-at is of a single run: give no lists, repeat, matrix or find_rate",
        ),
        (
            ("127.0.0.1:1", "--processes", "3", "-c", "2"),
            "--connections must be at least the number of shards, 3, not 2",
        ),
    ],
)
def test_wrong_words_are_one_line(words: tuple[str, ...], line: str, run: Run) -> None:
    assert run("bench", *words) == (2, b"", f"anyecho: {line}\n")
