"""Signals to PID 1 of a namespace, and signals that the parent process has ignored or blocked."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from anyecho.cli.default_action import end_on_sigterm
from tests.support.machine import skip
from tests.support.peers import dial, exchange, receive_all
from tests.support.process import TIMEOUT, Process, Processes, accepts, echo, peer, wait_until
from tests.support.stuck import REPORT_SIGNALS, STUCK, STUCK_SEND

TCP = "tcp://127.0.0.1:0"
LONG = "1h"

#: Continues as PID 1 of a new namespace. The parent prints the outer PID first, and exits with the same status.
AS_PID_1 = """
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWPID, CLONE_NEWUSER, PR_SET_PDEATHSIG = 0x20000000, 0x10000000, 1
if libc.unshare(CLONE_NEWPID | (CLONE_NEWUSER if os.getuid() else 0)):
    raise OSError(ctypes.get_errno(), "unshare")
printed, printing = os.pipe()
child = os.fork()
if child:
    os.write(2, b"%d\\n" % child)
    os.close(printing)
    os._exit(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
os.close(printing)
os.read(printed, 1)
os.close(printed)
assert os.getpid() == 1
"""
IGNORE_SIGINT = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"

#: Starts ``anyecho *arguments`` as PID 1; returns the process and a function that sends it a signal.
Start = Callable[..., tuple[Process, Callable[[int], None]]]


@pytest.fixture
def start_as_pid_1(processes: Processes) -> Start:
    probe = subprocess.run([sys.executable, "-c", AS_PID_1], capture_output=True, timeout=TIMEOUT)
    if probe.returncode:
        skip(f"the right to make a PID namespace ({probe.stderr.decode().splitlines()[-1]})")

    def start(*arguments: str, before: str = "", **options: Any) -> tuple[Process, Callable[[int], None]]:
        process = processes.start(*arguments, before=AS_PID_1 + before, **options)
        assert process.popen.stderr is not None
        line = b""
        while not line.endswith(b"\n"):  # a byte at a time: PID 1 writes more
            line += (byte := os.read(process.popen.stderr.fileno(), 1))
            assert byte, process.errors()
        return process, lambda signum: os.kill(int(line), signum)

    return start


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT], ids=lambda signum: signum.name)
def signum(request: pytest.FixtureRequest) -> signal.Signals:
    number: signal.Signals = request.param
    return number


@pytest.fixture
def server() -> Iterator[str]:
    with peer(echo) as address:
        yield address


@pytest.mark.by_turns("signum")
def test_the_first_signal_drains_a_server_that_is_pid_1(start_as_pid_1: Start, signum: int, backend: str) -> None:
    process, kill = start_as_pid_1("serve", "-b", TCP, "--backend", backend)
    process.read_lines(1)
    kill(signum)

    assert process.wait() == 0


@pytest.mark.by_turns("signum")
def test_the_third_signal_ends_a_stuck_server_that_is_pid_1(
    start_as_pid_1: Start, signum: int, backend: str
) -> None:
    process, kill = start_as_pid_1("serve", "-b", TCP, "--backend", backend, before=STUCK + REPORT_SIGNALS)
    with dial(process.read_lines(1)[0]):
        process.read_errors(until="stuck\n")
        for _ in range(2):
            kill(signum)
            process.read_errors(until="noted\n")
        assert process.popen.poll() is None
        kill(signum)

        assert process.wait() == 128 + signum


def test_the_second_signal_ends_a_stuck_send_that_is_pid_1(start_as_pid_1: Start, signum: int, server: str) -> None:
    process, kill = start_as_pid_1("send", server, "hello", before=REPORT_SIGNALS + STUCK_SEND)
    process.read_errors(until="stuck\n")
    kill(signum)
    process.read_errors(until="noted\n")
    kill(signum)

    assert process.wait() == 128 + signum


def test_sigterm_ends_pid_1_during_its_imports(start_as_pid_1: Start) -> None:
    slow_import = """
import os, sys, time
class Finder:
    def find_spec(name, *_):
        if name == "anyecho.cli.main":
            os.write(2, b"importing\\n")
            while True:
                time.sleep(0.05)  # a signal just before a longer sleep would not end it
sys.meta_path.insert(0, Finder)
"""
    process, kill = start_as_pid_1("serve", "-b", TCP, before=slow_import)
    process.read_errors(until="importing\n")
    kill(signal.SIGTERM)

    assert process.wait() == 128 + signal.SIGTERM


def test_a_server_started_with_sigint_ignored_leaves_it_ignored(processes: Processes, backend: str) -> None:
    options = ("--backend", backend, "--graceful-timeout", LONG, "--linger", LONG)
    process = processes.serve("-b", TCP, *options, before=IGNORE_SIGINT)
    with dial(process.addresses[0]) as sock:
        assert exchange(sock, b"before") == b"before"
        process.signal(signal.SIGINT)
        process.signal(signal.SIGTERM)
        # As a second signal, it would close the connection.
        wait_until(lambda: not accepts(process.addresses[0]))
        assert exchange(sock, b"after") == b"after"
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b""

    assert process.wait() == 0


def test_a_send_started_with_sigint_ignored_leaves_it_ignored(processes: Processes, server: str) -> None:
    process = processes.start("send", server, before=IGNORE_SIGINT, stdin=subprocess.PIPE)
    stdin = process.popen.stdin
    assert stdin is not None
    for line in (b"one\n", b"two\n"):
        os.write(stdin.fileno(), line)
        assert process.read_bytes(4) == line
        process.signal(signal.SIGINT)
    stdin.close()

    assert process.wait() == 0


def test_sigterm_ignored_at_the_start_still_drains(processes: Processes, backend: str) -> None:
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    process = processes.serve("-b", TCP, "--backend", backend, before=ignore)
    process.signal(signal.SIGTERM)

    assert process.wait() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=lambda signum: signum.name)
@pytest.mark.by_turns("signum")
def test_a_signal_blocked_at_the_start_still_drains(
    processes: Processes, backend: str, signum: signal.Signals
) -> None:
    block = f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [{int(signum)}])\n"
    process = processes.serve("-b", TCP, "--backend", backend, before=block)
    process.signal(signum)

    assert process.wait() == 0


@pytest.mark.parametrize(("pid", "is_handled"), [(1, True), (2, False)])
def test_only_pid_1_has_a_handler_of_sigterm_during_its_start(
    pid: int, is_handled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel discards a signal to PID 1 whose action is the default."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        monkeypatch.setattr(os, "getpid", lambda: pid)
        end_on_sigterm()
        assert callable(signal.getsignal(signal.SIGTERM)) == is_handled
    finally:
        signal.signal(signal.SIGTERM, before)
