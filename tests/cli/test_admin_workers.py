"""``anyecho serve --workers --admin``: the supervisor answers for its workers, also for those that have ended."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cli.test_admin import TCP, get
from tests.support.peers import converse, dial, exchange
from tests.support.process import Process, Processes, descendants, is_alive, wait_until


@pytest.fixture
def process(processes: Processes, backend: str) -> Process:
    arguments = ("--admin", TCP, "--workers", "2", "--log-level", "info", "--graceful-timeout", "1h")
    return processes.serve("--backend", backend, TCP, *arguments, listeners=2)


def metrics(process: Process) -> dict[str, float]:
    """Return the value of each sample, by its name, and that of its label."""
    status, text = get(f"{process.addresses[1]}/metrics")
    assert status == 200
    return {
        "".join([sample.name, *(f" {value}" for value in sample.labels.values())]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def sums(process: Process) -> tuple[float, float, float, float]:
    """Return the connections accepted and closed, and the bytes received and sent, of all workers."""
    found = metrics(process)
    closed = sum(value for name, value in found.items() if name.startswith("anyecho_connections_closed_total"))
    accepted, received, sent = (
        found[f"anyecho_{name}_total"] for name in ("connections_accepted", "received_bytes", "sent_bytes")
    )
    assert found["anyecho_connections_open"] == accepted - closed
    return accepted, closed, received, sent


def converse_many(process: Process, count: int) -> None:
    for _ in range(count):
        assert converse(dial(process.addresses[0]), b"hello") == b"hello"


def until_reported(process: Process, accepted: int) -> None:
    """Wait until all of `accepted` connections are counted as closed."""
    wait_until(lambda: sums(process)[1] == accepted)


@pytest.mark.by_turns("backend")
def test_a_roll_loses_no_count(process: Process, opened: ExitStack) -> None:
    peers = [opened.enter_context(dial(process.addresses[0])) for _ in range(20)]
    assert [exchange(peer, b"hello") for peer in peers] == [b"hello"] * 20
    before = descendants(process.pid)
    process.signal(signal.SIGHUP)
    converse_many(process, 20)
    process.read_errors(until="all workers are replaced\n")
    for peer in peers:  # the last ones of the old workers, which end at once
        assert exchange(peer, b"again") == b"again"
        peer.close()
    wait_until(lambda: not any(map(is_alive, before)))
    converse_many(process, 20)
    until_reported(process, 60)

    assert sums(process) == (60, 60, 400, 400)
    assert metrics(process)["anyecho_connections_closed_total eof"] == 60
    assert metrics(process)["anyecho_connection_duration_seconds_count"] == 60


@pytest.mark.by_turns("backend")
def test_what_a_killed_worker_has_reported_is_kept(process: Process, opened: ExitStack) -> None:
    converse_many(process, 20)
    peers = [opened.enter_context(dial(process.addresses[0])) for _ in range(10)]
    assert [exchange(peer, b"open") for peer in peers] == [b"open"] * 10
    # A scrape brings a report of each worker, and nothing is counted after it.
    wait_until(lambda: sums(process) == (30, 20, 140, 140))
    victim = descendants(process.pid)[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(descendants(process.pid)) == 2 and not is_alive(victim))
    wait_until(lambda: metrics(process).get("anyecho_worker_restarts_total signal") == 1)
    for peer in peers:
        peer.close()
    until_reported(process, 30)
    converse_many(process, 20)
    until_reported(process, 50)

    assert sums(process) == (50, 50, 240, 240)
    found = metrics(process)
    assert found["anyecho_connections_closed_total eof"] + found["anyecho_connections_closed_total died"] == 50


@pytest.mark.by_turns("backend")
def test_peers_are_those_of_all_workers(process: Process, opened: ExitStack) -> None:
    peers = [opened.enter_context(dial(process.addresses[0])) for _ in range(100)]
    assert [exchange(peer, b"hello") for peer in peers] == [b"hello"] * 100
    shown = json.loads(get(f"{process.addresses[1]}/peers")[1])

    assert sorted(peer["address"][1] for peer in shown) == sorted(peer.getsockname()[1] for peer in peers)
    assert {peer["bytes_received"] for peer in shown} == {5}


@pytest.mark.by_turns("backend")
def test_a_stopped_worker_holds_up_no_health_check_and_no_scrape(process: Process) -> None:
    converse_many(process, 20)
    until_reported(process, 20)
    victim = descendants(process.pid)[0]
    os.kill(victim, signal.SIGSTOP)

    assert get(f"{process.addresses[1]}/readyz") == (200, "ready\n")
    assert sums(process) == (20, 20, 100, 100)
    os.kill(victim, signal.SIGCONT)


@pytest.mark.by_turns("backend")
def test_a_supervisor_that_drains_is_alive_and_not_ready(process: Process, opened: ExitStack) -> None:
    peer = opened.enter_context(dial(process.addresses[0]))
    assert exchange(peer, b"before") == b"before"
    process.signal()
    wait_until(lambda: get(f"{process.addresses[1]}/readyz")[0] == 503)

    assert get(f"{process.addresses[1]}/healthz") == (200, "ok\n")
    assert exchange(peer, b"after") == b"after"
