"""``anyecho bench`` without an address, and as a series of runs: real processes, and no server left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.support.machine import needs
from tests.support.process import Process, Processes, is_alive, wait_until

#: A server of the tasks engine does not start.
BROKEN_TASKS = """
from anyecho.measure.series_options import OwnServerOptions
command = OwnServerOptions.command
def broken(self, *args):
    return ["serve", "-b", "unix:/nowhere/x"] if self.server_engine == "tasks" else command(self, *args)
OwnServerOptions.command = broken
"""
needs_proc = needs(sys.platform == "linux", "/proc")
SHORT = ("-n", "200", "--warmup", "0")


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def serving(process: Process) -> int:
    """Wait until `process` has started a server, and the server has a connection; return its number."""
    wait_until(lambda: bool(children(process.pid)))
    [pid] = children(process.pid)

    def has_connections() -> bool:
        sockets = 0
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                sockets += os.readlink(each).startswith("socket:")
        return sockets > 5

    wait_until(has_connections)
    return pid


def document(text: bytes) -> Any:
    found = json.loads(text)
    assert found["program"] == "anyecho"
    return found


@needs_proc
@pytest.mark.by_turns("backend")
@pytest.mark.parametrize("carrier", ["tcp", "udp"])
def test_bench_without_an_address_measures_its_own_server(carrier: str, backend: str, processes: Processes) -> None:
    options = ("--backend", backend, "--carrier", carrier, "--json", "-")
    status, output, errors = processes.run("bench", *SHORT, *options)
    assert (status, errors) == (0, "")
    [run] = document(output)["runs"]
    assert run["counts"]["verified"] == 200
    assert run["load"]["server_backend"] == "asyncio"
    assert run["server_cpu_per_echo"] > 0


@needs_proc
@pytest.mark.by_turns("backend")
def test_ctrl_c_prints_the_figures_so_far_and_leaves_no_server(backend: str, processes: Processes) -> None:
    bench = processes.start("bench", "-d", "60", "--repeat", "3", "--backend", backend, "--json", "-")
    server = serving(bench)
    bench.signal(signal.SIGINT)
    output, _ = bench.popen.communicate(timeout=30)
    assert bench.popen.returncode == 130
    [run] = document(output)["runs"]
    assert run["interrupted"] is True
    assert not is_alive(server)


@needs_proc
def test_sigkill_leaves_no_server(processes: Processes) -> None:
    bench = processes.start("bench", "-d", "60")
    server = serving(bench)
    bench.signal(signal.SIGKILL)
    bench.wait()
    wait_until(lambda: not is_alive(server))


@needs_proc
def test_a_server_that_is_killed_is_an_error_of_the_run(processes: Processes) -> None:
    bench = processes.start("bench", "-d", "60", "--timeout", "2", "--json", "-")
    os.kill(serving(bench), signal.SIGKILL)
    output, _ = bench.popen.communicate(timeout=30)
    assert bench.popen.returncode == 1
    [run] = document(output)["runs"]
    assert run["error"] == "the server ended with status -9"


def test_a_server_that_fails_is_one_line_and_the_others_go_on(processes: Processes) -> None:
    status, output, errors = processes.run("bench", "--matrix", "--repeat", "1", *SHORT, before=BROKEN_TASKS)
    assert status == 1
    failed = [line for line in output.decode().splitlines() if "  failed: " in line]
    assert failed
    assert all(re.search(r"tasks engine +failed: cannot start a server: ", line) for line in failed)
    assert len(errors.splitlines()) == len(failed)
    assert "ratio to asyncio server, events engine" in output.decode()


def test_a_sweep_is_one_document_of_all_runs(processes: Processes, tmp_path: Path) -> None:
    name = str(tmp_path / "sweep.json")
    status, output, _ = processes.run("bench", "-s", "64,1KiB", "-c", "1,3", *SHORT, "--json", name)
    assert status == 0
    loads = [run["load"] for run in document(Path(name).read_bytes())["runs"]]
    assert [(load["connections"], load["size"]) for load in loads] == [(1, 64), (1, 1024), (3, 64), (3, 1024)]
    assert "3 connections, 1KiB" in output.decode()


def test_find_rate_prints_its_outcome_first(processes: Processes) -> None:
    options = ("-d", "0.5", "--warmup", "0", "-r", "2", "--find-rate", "max<1us")
    status, output, _ = processes.run("bench", *options)
    first = output.decode().splitlines()[0]
    assert status == 1
    assert first.startswith("no rate was found at which max<1us holds: ")


def test_a_failed_gate_is_status_99(processes: Processes) -> None:
    status, _, errors = processes.run("bench", *SHORT, "--fail-if", "p50>1us")
    assert status == 99
    assert "p50>1us: p50 is " in errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--carrier sctp", 'Invalid value "sctp" for --carrier'),
        ("-r 100,0", "--rate must be more than 0"),
        ("-c 1,,2", "Invalid value for -c: '' is not a whole number"),
        ("-s 64,many", "'many' is not a size"),
        ("tcp://127.0.0.1:1 --matrix", "--matrix starts its own servers: leave the address out"),
        ("tcp://127.0.0.1:1 --server-engine tasks", "without effect, because an address is given: --server-engine"),
        ("--matrix --server-backend trio", "--matrix compares every server"),
        ("--repeat 0", "--repeat must be 1 or more"),
        ("--find-rate p99<+1%", "--find-rate 'p99<+1%' must be a figure of one run"),
        ("--find-rate p99<1ms -s 1,2", "--find-rate excludes --matrix, --repeat and lists of values"),
        ("--fail-if p99>+5%", "needs a baseline"),
        ("-s 1,2 --hdr x.hgrm", "--hdr: a .hgrm file has one configuration, and there are several"),
        ("--find-rate p99<1ms --hdr x.hgrm", "--hdr: a .hgrm file has one configuration"),
        ("--cpu x", "--cpu must be cores"),
    ],
)
def test_wrong_usage_is_one_line_with_status_2(arguments: str, text: str, run: Run) -> None:
    status, output, errors = run("bench", *arguments.split())
    assert (status, output, errors.count("\n")) == (2, b"", 1)
    assert text in errors


def test_a_variable_for_the_own_server_is_ignored_with_an_address(processes: Processes) -> None:
    server = processes.serve("tcp://127.0.0.1:0")
    environment = os.environ | {"ANYECHO_CARRIER": "unix"}
    status, _, errors = processes.run("bench", server.addresses[0], *SHORT, env=environment)
    assert (status, errors) == (0, "")
