"""``anyecho serve --workers``: a supervisor and its worker processes."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.peers import dial, exchange, receive_all
from tests.support.process import Process, Processes, accepts, descendants, is_alive, wait_until

TCP = "tcp://127.0.0.1:0"


def serve(processes: Processes, *arguments: str, count: int = 2, **options: Any) -> Process:
    return processes.serve(*arguments, "--workers", str(count), **options)


def test_two_workers_serve_one_listener(processes: Processes, backend: str, opened: ExitStack) -> None:
    process = serve(processes, "-b", TCP, "--backend", backend)
    workers = descendants(process.pid)
    assert len(workers) == 2
    assert {os.getsid(each) for each in workers} == {*workers}

    peers = [opened.enter_context(dial(process.addresses[0])) for _ in range(20)]
    assert [exchange(each, b"hello") for each in peers] == [b"hello"] * 20


def test_sigterm_drains_all_workers(processes: Processes, backend: str, opened: ExitStack) -> None:
    process = serve(processes, "-b", TCP, "--backend", backend, "--graceful-timeout", "1h")
    workers = descendants(process.pid)
    peers = [opened.enter_context(dial(process.addresses[0])) for _ in range(4)]
    assert [exchange(each, b"before") for each in peers] == [b"before"] * 4
    process.signal()
    wait_until(lambda: not accepts(process.addresses[0]))

    assert [exchange(each, b"after") for each in peers] == [b"after"] * 4
    for each in peers:
        each.shutdown(socket.SHUT_WR)
        assert receive_all(each) == b""
    assert process.wait() == 0
    assert process.errors() == ""
    assert not any(map(is_alive, workers))


def test_a_second_signal_closes_the_connections_of_all_workers(
    processes: Processes, backend: str, opened: ExitStack
) -> None:
    process = serve(processes, "-b", TCP, "--backend", backend, "--graceful-timeout", "1h")
    peers = [opened.enter_context(dial(process.addresses[0])) for _ in range(4)]
    assert [exchange(each, b"before") for each in peers] == [b"before"] * 4
    process.signal()
    wait_until(lambda: not accepts(process.addresses[0]))
    process.signal()

    assert process.wait() == 0


def test_a_roll_replaces_all_workers(processes: Processes, backend: str) -> None:
    process = serve(processes, "-b", TCP, "--backend", backend, "--log-level", "info")
    before = descendants(process.pid)
    process.signal(signal.SIGHUP)
    process.read_errors(until="all workers are replaced\n")
    wait_until(lambda: not any(map(is_alive, before)))

    assert len(descendants(process.pid)) == 2
    assert accepts(process.addresses[0])


def test_workers_serve_a_unix_socket(processes: Processes, short_path: Path) -> None:
    path = short_path / "echo"
    process = serve(processes, "-b", f"unix:{path}")
    with dial(process.addresses[0]) as sock:
        assert exchange(sock, b"hello") == b"hello"
    process.signal()

    assert process.wait() == 0
    assert not path.exists()


@pytest.mark.parametrize("value", ["0", "two", "-1", "1.5", "1025"])
def test_a_number_of_workers_out_of_range_is_a_usage_error(processes: Processes, value: str) -> None:
    text = f"anyecho: --workers must be auto, or 1 to 1024, not {value!r}\n"
    assert processes.run("serve", "-b", TCP, "--workers", value) == (2, b"", text)
