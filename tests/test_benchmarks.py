"""The benchmarks run; their figures are not checked here."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from anyecho.measure.result import Document
from tests.support.machine import needs_linux, needs_program

ROOT = Path(__file__).parent.parent
#: They read the cost of a server from /proc.
pytestmark = needs_linux


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return script("run.py", *arguments)


@pytest.mark.parametrize("server", ["anyecho-events-asyncio", "asyncio-streams"])
def test_a_short_run_measures_and_saves(server: str, tmp_path: Path) -> None:
    chosen = ("--only", server, "--workload", "100x64", "--rounds", "2", "--seconds", "0.1")
    run = bench(*chosen, "--output", str(tmp_path))

    assert run.returncode == 0, run.stderr
    assert "round 2/2  100x64" in run.stderr
    saved = json.loads((tmp_path / "results.json").read_text())
    figures = saved["values"]["100x64"][server]
    assert {len(values) for values in figures.values()} == {2}
    assert min(figures["messages_per_second"]) > 0
    assert min(figures["cpu_us_per_echo"]) > 0
    assert saved["failures"] == []
    assert f"| {server} |" in run.stdout
    assert run.stdout == (tmp_path / "table.md").read_text()


def test_the_limits_benchmark_measures() -> None:
    options = ("--backend", "asyncio", "--seconds", "0.1", "--rounds", "1", "--turn", "0.1")
    command = [sys.executable, str(ROOT / "benchmarks" / "limits.py"), *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)

    # 0.1 s is too short for an exact figure.
    assert run.returncode in (0, 1), run.stderr
    assert [line.split()[0] for line in run.stdout.splitlines()] == ["asyncio"] * 5, run.stderr


def test_the_recorded_runs_are_compared_as_the_table_says() -> None:
    run = script("compare_aa.py", "--comparisons", "50")

    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("holds") == 2
    assert re.search(r"x 1\.2\d\n", run.stdout)


def test_runs_for_a_comparison_are_recorded_in_pairs(tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    run = script("compare_aa.py", "--record", "--pairs", "1", "--seconds", "0.05", "--file", str(file))

    assert run.stderr.endswith("1 runs of each server are too few: 14 are needed\n")
    runs = Document.from_json(file.read_bytes()).runs
    assert [(each.load.address, each.round) for each in runs] == [("unchanged", 0), ("25 % more CPU", 0)]
    assert all(each.server_cpu_per_echo and each.counts.verified == each.counts.sent for each in runs)


def test_the_benchmark_of_fixtures_measures() -> None:
    run = script("fixtures.py", "--rounds", "2")

    assert run.returncode == 0, run.stderr
    assert [line.split("|")[1].strip() for line in run.stdout.splitlines()[2:]] == ["asyncio", "uvloop", "trio"]


def test_the_benchmark_of_clients_measures() -> None:
    run = script("clients.py", "1", "1000", "100")

    assert run.returncode == 0, run.stderr
    assert [len(line.split("|")) for line in run.stdout.splitlines()] == [6] * 5


def test_an_unknown_server_is_named() -> None:
    run = bench("--only", "nonsense")

    assert run.returncode == 1
    assert run.stderr.startswith("no nonsense; there are anyecho-events-asyncio, ")


needs_compiler = needs_program("cc")


@needs_compiler
def test_the_paced_benchmark_measures_beside_a_hundred_other_listeners(tmp_path: Path) -> None:
    others = [socket.create_server(("127.0.0.1", 0)) for _ in range(100)]
    chosen = ("--only", "anyecho-events-asyncio", "--connections", "50", "--sizes", "64", "--rates", "1000")
    run = script("paced.py", *chosen, "--rounds", "1", "--seconds", "0.1", "--output", str(tmp_path / "paced.md"))
    for each in others:
        each.close()

    assert run.returncode == 0, run.stderr
    assert "## 1,000/s, 50 x 64 B" in run.stdout
    assert "| anyecho-events-asyncio | " in run.stdout
    assert run.stdout == (tmp_path / "paced.md").read_text()


@needs_compiler
def test_pairs_of_servers_are_measured_and_judged(tmp_path: Path) -> None:
    limits = {
        "50 x 64 B, 1000/s": "<= 0.9 x asyncio-protocol",
        "10 x 64 KiB, closed loop": "<= 1.05 x asyncio-protocol",
    }
    options = ("--pairs", "2", "--seconds", "0.1", "--output", str(tmp_path / "pairs.md"))
    run = script("pairs.py", "--only", "anyecho-events-asyncio", "--loads", *limits, *options)

    assert run.returncode == 0, run.stderr
    for load, limit in limits.items():
        assert f"| anyecho-events-asyncio | {load} | {limit} |" in run.stdout
    assert run.stdout == (tmp_path / "pairs.md").read_text()


def test_the_benchmark_of_workers_measures() -> None:
    run = script("workers.py", "--backend", "asyncio", "--rounds", "1", "--seconds", "0.1")

    assert run.returncode == 0, run.stderr
    assert [line.split("|")[1].strip() for line in run.stdout.splitlines()[2:]] == ["asyncio", "asyncio"]
