"""``serve --fault`` and ``--seed``: real processes, and one line for a wrong value."""

from __future__ import annotations

import re

import pytest

from tests.cli.conftest import Run
from tests.support.peers import converse, dial
from tests.support.process import Processes

TCP = "tcp://127.0.0.1:0"


def test_a_server_misbehaves_as_told_and_logs_its_seed(processes: Processes, backend: str) -> None:
    words = ("--fault", "limit_data:bytes=2,on=1", "--fault", "corrupt:offset=0,on=2", "--log-level", "info")
    server = processes.serve("-b", TCP, "--backend", backend, *words)
    assert converse(dial(server.addresses[0]), b"hello") == b"he"
    echo = converse(dial(server.addresses[0]), b"hello")
    assert echo[:1] != b"h"
    assert echo[1:] == b"ello"
    assert converse(dial(server.addresses[0]), b"hello") == b"hello"
    errors = server.read_errors(until="corrupt: byte")
    assert re.search(r"misbehaves on purpose: limit_data, corrupt, seed \d+\n", errors)
    assert f"corrupt: byte 0 was 0x68, is 0x{echo[0]:02x}" in errors


def test_a_run_repeats_with_its_seed(processes: Processes) -> None:
    words = ("-b", TCP, "--fault", "corrupt:rate=0.2")
    first = processes.serve(*words)
    seed = re.search(r"seed (\d+)", first.read_errors(until="seed"))
    assert seed is not None
    again = processes.serve(*words, "--seed", seed[1])
    replies = [[converse(dial(each.addresses[0]), bytes(50)) for _ in range(3)] for each in (first, again)]
    assert replies[0] == replies[1]
    assert len(set(replies[0])) == 3


def test_faults_come_from_the_environment_too(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYECHO_FAULT", "limit_data:bytes=3,on=1 limit_data:bytes=1,on=2")
    monkeypatch.setenv("ANYECHO_SEED", "7")
    server = processes.serve("-b", TCP)
    assert "limit_data, limit_data, seed 7" in server.read_errors(until="seed 7")
    assert [converse(dial(server.addresses[0]), b"hello") for _ in range(3)] == [b"hel", b"h", b"hello"]


@pytest.mark.parametrize(
    ("words", "listeners", "warned"),
    [((), 1, True), (("--control", "127.0.0.1:0"), 2, False), (("--fault", "cut:bytes=1"), 1, False)],
)
def test_a_seed_that_decides_nothing_is_warned_of(
    words: tuple[str, ...], listeners: int, warned: bool, processes: Processes
) -> None:
    server = processes.serve(TCP, "--seed", "7", "--log-level", "info", *words, listeners=listeners)
    assert ("without effect: --seed (there is no fault)" in server.read_errors(until="starting up")) is warned


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--fault", "latncy"), "no fault 'latncy' (did you mean latency?); there are "),
        (("--fault", "latency:latency=100"), "latency: latency: '100' has no unit: write 100ms or 100s\n"),
        (("--fault", "latency:laten=1s"), "latency: no key 'laten' (did you mean latency?); there are "),
        (("--fault", "slicer:average_size=9,size_variation=9"), "slicer: size_variation must be less than"),
        (("--fault", "corrupt:rate=nan"), "corrupt: rate must be"),
        (("--seed", "1.5"), "Invalid value"),
        (
            ("--fault", "cut:bytes=1", "--engine", "events"),
            "--fault need a task for each connection: --engine must",
        ),
    ],
)
def test_a_wrong_fault_is_one_line(words: tuple[str, ...], error: str, run: Run) -> None:
    status, output, errors = run("serve", ":0", *words)
    assert (status, output) == (2, b"")
    assert errors.startswith(f"anyecho: {error}")
    assert errors.count("\n") == 1
