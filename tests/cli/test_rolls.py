"""Rolls of ``anyecho serve --workers`` under load: no connection is lost or reset."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.closed_loop import closed_loop
from tests.support.process import Processes

TCP = "tcp://127.0.0.1:0"
ROLLED = "all workers are replaced\n"


@pytest.mark.fault(row=15, injected="two rolls under 16 clients in closed loops")
def test_no_connection_is_lost_in_two_rolls(processes: Processes, backend: str) -> None:
    process = processes.serve("-b", TCP, "--backend", backend, "--workers", "2", "--log-level", "info")
    with closed_loop(process.addresses[0]) as loop:
        for _ in range(2):  # the second one replaces what the first one has started
            loop.wait_for(100)
            process.signal(signal.SIGHUP)
            process.read_errors(until=ROLLED)
        loop.wait_for(100)

    assert loop.failures == []
    process.signal()
    assert process.wait() == 0


def test_no_connection_to_a_unix_socket_is_lost_in_a_roll(processes: Processes, short_path: Path) -> None:
    address = f"unix:{short_path}/echo"
    process = processes.serve("-b", address, "--workers", "1", "--log-level", "info")
    with closed_loop(address) as loop:
        loop.wait_for(100)
        process.signal(signal.SIGHUP)
        process.read_errors(until=ROLLED)
        loop.wait_for(100)

    assert loop.failures == []


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.fault(row=15, injected="30 rolls, 50,000 connections of 16 clients in closed loops")
def test_no_connection_is_lost_in_30_rolls(processes: Processes, backend: str) -> None:
    process = processes.serve("-b", TCP, "--backend", backend, "--workers", "2", "--log-level", "info")
    with closed_loop(process.addresses[0]) as loop:
        rolls = 0
        while rolls < 30 or loop.served < 50_000:
            process.signal(signal.SIGHUP)
            process.read_errors(until=ROLLED)
            rolls += 1

    assert loop.failures == []
    assert loop.served >= 50_000
    process.signal()
    assert process.wait() == 0
