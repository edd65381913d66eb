"""SIGHUP at a real server: a reload, a warning, or a drain if the terminal has closed."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.certificates import Files, files_in
from tests.support.peers import dial, exchange, receive_all
from tests.support.process import TIMEOUT, Process, Processes, accepts, wait_until
from tests.support.stuck import DEAD_NAME_SERVER

TCP = "tcp://127.0.0.1:0"
LONG = "1h"
IGNORED = "main: SIGHUP is ignored: no address uses certificate files that could be reloaded\n"
DRAINS = "main: the terminal is gone: letting connections finish\n"

#: Makes the terminal on standard input the controlling terminal, as a login does.
TAKE_TERMINAL = "import fcntl, os, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
#: What nohup(1) does.
NOHUP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"


@contextmanager
def at_terminal(processes: Processes, *arguments: str, before: str = "") -> Iterator[tuple[Process, int]]:
    """Start a server as session leader of a terminal; yield it and the other end, which the block closes."""
    keyboard, screen = os.openpty()
    try:
        process = processes.serve(*arguments, before=TAKE_TERMINAL + before, stdin=screen)
    finally:
        os.close(screen)
    try:
        yield process, keyboard
    finally:
        if process.popen.poll() is None:
            process.popen.kill()


@pytest.mark.parametrize("arguments", [["-b", TCP], ["-b", "tls://127.0.0.1:0", "--ssl-self-signed"]])
@pytest.mark.by_turns("arguments")
def test_sighup_without_certificate_files_is_a_warning(
    processes: Processes, backend: str, arguments: list[str]
) -> None:
    process = processes.serve("--backend", backend, *arguments)
    for _ in range(3):  # not counted as a terminating signal
        process.signal(signal.SIGHUP)
        assert process.read_errors(until=IGNORED).endswith(IGNORED)
    assert accepts(process.addresses[0].replace("tls", "tcp"))

    process.signal()
    assert process.wait() == 0
    assert process.errors() == ""


def test_sighup_with_files_that_no_address_uses_is_a_warning(processes: Processes) -> None:
    environ = os.environ | {"ANYECHO_SSL_CERTFILE": "/absent"}
    process = processes.serve("-b", TCP, env=environ)
    process.read_errors(until="no address is for TLS: write tls://127.0.0.1:0)\n")
    process.signal(signal.SIGHUP)
    assert process.read_errors(until="\n") == IGNORED
    process.signal()

    assert process.wait() == 0


@pytest.mark.by_turns("backend")
def test_sighup_before_the_server_listens_is_a_warning(processes: Processes, backend: str) -> None:
    process = processes.start("serve", "-b", "tcp://slow:0", "--backend", backend, before=DEAD_NAME_SERVER)
    process.read_errors(until="resolving\n")
    process.signal(signal.SIGHUP)
    assert process.read_errors(until="\n") == IGNORED
    process.signal()

    assert process.wait() == 0


def test_a_reload_without_certificate_files_is_reported_as_ready(processes: Processes, short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{short_path}/notify")
        manager.settimeout(TIMEOUT)
        process = processes.serve("-b", TCP, env=os.environ | {"NOTIFY_SOCKET": f"{short_path}/notify"})
        assert manager.recv(4096).startswith(b"READY=1\n")
        process.signal(signal.SIGHUP)
        assert manager.recv(4096).startswith(b"RELOADING=1\n")
        assert manager.recv(4096).startswith(b"READY=1\n")


@pytest.mark.by_turns("backend")
def test_sighup_is_ignored_while_the_terminal_exists(processes: Processes, backend: str) -> None:
    with at_terminal(processes, "-b", TCP, "--backend", backend) as (process, keyboard):
        process.signal(signal.SIGHUP)
        assert process.read_errors(until="\n") == IGNORED
        process.signal()
        assert process.wait() == 0
        os.close(keyboard)


def test_a_server_drains_when_its_terminal_is_gone(processes: Processes, backend: str, short_path: Path) -> None:
    path = short_path / "echo"
    options = ("--backend", backend, "--graceful-timeout", LONG)
    with at_terminal(processes, "-b", f"unix:{path}", *options) as (process, keyboard):
        with dial(process.addresses[0]) as sock:
            assert exchange(sock, b"before") == b"before"
            os.close(keyboard)
            assert process.read_errors(until="\n") == DRAINS
            wait_until(lambda: not accepts(process.addresses[0]))
            # A shell repeats the kernel's signal. By the third echo it has been handled.
            process.signal(signal.SIGHUP)
            for _ in range(3):
                assert exchange(sock, b"after") == b"after"
            sock.shutdown(socket.SHUT_WR)
            assert receive_all(sock) == b""

        assert process.wait() == 0
        assert process.errors() == ""

    assert not path.exists()


def test_sigterm_closes_at_once_during_a_drain_for_a_closed_terminal(processes: Processes) -> None:
    options = ("--graceful-timeout", LONG, "--linger", LONG)
    with at_terminal(processes, "-b", TCP, *options) as (process, keyboard), dial(process.addresses[0]) as sock:
        assert exchange(sock, b"before") == b"before"
        os.close(keyboard)
        process.read_errors(until=DRAINS)
        process.signal()

        assert process.wait() == 0


@pytest.mark.by_turns("backend")
def test_a_server_under_nohup_survives_its_terminal(processes: Processes, backend: str) -> None:
    with at_terminal(processes, "-b", TCP, "--backend", backend, before=NOHUP) as (process, keyboard):
        os.close(keyboard)
        assert process.read_errors(until="\n") == IGNORED
        assert accepts(process.addresses[0])
        process.signal()

        assert process.wait() == 0


@pytest.mark.parametrize("before", ["", NOHUP], ids=["", "nohup"])
def test_a_server_with_a_certificate_reloads_it_when_its_terminal_is_gone(
    processes: Processes, tmp_path: Path, before: str
) -> None:
    """With certificate files, SIGHUP always means a reload."""
    files: Files = files_in(tmp_path)
    arguments = ("-b", "tls://127.0.0.1:0", "--ssl-certfile", str(files.cert), "--ssl-keyfile", str(files.key))
    with at_terminal(processes, *arguments, "--log-level", "info", before=before) as (process, keyboard):
        os.close(keyboard)
        process.read_errors(until="main: certificates reloaded\n")
        process.signal(signal.SIGHUP)
        process.read_errors(until="main: certificates reloaded\n")
        process.signal()

        assert process.wait() == 0
