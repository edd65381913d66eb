"""A process that cannot start threads (ulimit -u, pids.max): work that needs one fails with one line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.peers import dial, exchange
from tests.support.pipes import unread_pipe
from tests.support.process import Processes, accepts, echo, peer, wait_until

TCP = "tcp://127.0.0.1:0"
#: Makes pthread_create(3) fail in Python as under such a limit.
NO_THREADS = """
import threading
def none(*args, **options):
    raise RuntimeError("can't start new thread")
for name in ("_start_new_thread", "_start_joinable_thread"):  # the latter from Python 3.13 on
    if hasattr(threading, name):
        setattr(threading, name, none)
"""
REASON = "no thread can be started for it (see ulimit -u and pids.max)"


@pytest.fixture
def server() -> Iterator[str]:
    with peer(echo) as address:
        yield address


def test_a_server_reports_its_address_serves_and_logs(processes: Processes, backend: str) -> None:
    process = processes.serve("-b", TCP, "--backend", backend, "--access-log", before=NO_THREADS)
    with dial(process.addresses[0]) as sock:
        assert exchange(sock, b"hello") == b"hello"
    process.read_errors(until="the event loop writes it\n")
    process.signal()

    assert process.wait() == 0
    assert process.errors() == ""


def test_unread_addresses_are_one_warning_and_the_server_serves(
    processes: Processes, backend: str, short_path: Path
) -> None:
    address = f"unix:{short_path}/echo"
    with unread_pipe() as (_, write_end):
        options = ("--backend", backend)
        process = processes.start("serve", "-b", address, *options, before=NO_THREADS, stdout=write_end)
        wait_until(lambda: accepts(address))
        with dial(address) as sock:
            assert exchange(sock, b"hello") == b"hello"
        process.signal()
        assert process.wait() == 0

    line = "main: cannot report the addresses: its reader leaves no room for more\n"
    assert [each for each in process.errors().splitlines(True) if "no thread" not in each] == [line]


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
@pytest.mark.by_turns("scheme")
def test_serve_with_a_name_to_resolve_is_one_line_and_exit_3(
    processes: Processes, backend: str, scheme: str
) -> None:
    address = f"{scheme}://name.invalid:7"
    ended = processes.run("serve", "-b", address, "--backend", backend, before=NO_THREADS)

    assert ended == (3, b"", f"anyecho: cannot listen on {address}: {REASON}\n")


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
@pytest.mark.by_turns("scheme")
def test_send_with_a_name_to_resolve_is_one_line_and_exit_3(
    processes: Processes, backend: str, scheme: str
) -> None:
    address = f"{scheme}://name.invalid:7"
    ended = processes.run("send", address, "hello", "--backend", backend, before=NO_THREADS)

    assert ended == (3, b"", f"anyecho: cannot connect to {address}: {REASON}\n")


def test_messages_are_sent_and_their_echo_is_written(processes: Processes, backend: str, server: str) -> None:
    ended = processes.run("send", server, "hello", "--backend", backend, before=NO_THREADS)

    assert ended == (0, b"hello", "")


def test_a_file_is_sent(processes: Processes, backend: str, server: str, tmp_path: Path) -> None:
    payload = os.urandom(1 << 20)
    (tmp_path / "payload").write_bytes(payload)
    arguments = ("--file", f"{tmp_path}/payload", "--backend", backend)

    assert processes.run("send", server, *arguments, before=NO_THREADS) == (0, payload, "")


def test_a_file_as_standard_input_is_sent(processes: Processes, server: str, tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(b"hello")
    with open(tmp_path / "payload", "rb") as file:
        process = processes.start("send", server, before=NO_THREADS, stdin=file)
        assert process.wait() == 0

    assert process.read_bytes(5) == b"hello"


def test_a_pipe_as_standard_input_is_one_line_and_exit_1(processes: Processes, backend: str, server: str) -> None:
    process = processes.start("send", server, "--backend", backend, before=NO_THREADS, stdin=subprocess.PIPE)

    assert process.errors() == f"anyecho: cannot read standard input: {REASON}\n"
    assert process.wait() == 1


def test_a_fifo_is_one_line_and_exit_1(processes: Processes, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    ended = processes.run("send", "localhost:1", "--file", f"{tmp_path}/fifo", before=NO_THREADS)

    assert ended == (1, b"", f"anyecho: cannot read {tmp_path}/fifo: {REASON}\n")


def test_a_missing_file_is_a_usage_error(processes: Processes) -> None:
    status, _, errors = processes.run("send", "localhost:1", "--file", "/proc/no-such-file", before=NO_THREADS)

    assert (status, errors) == (2, "anyecho: cannot read /proc/no-such-file: No such file or directory\n")
