"""``anyecho serve`` under a service manager: socket activation, notification and the watchdog."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.support.activation import Manager, echoes, end
from tests.support.certificates import files_in
from tests.support.datagrams import udp_client
from tests.support.machine import needs_program
from tests.support.peers import dial, exchange
from tests.support.process import TIMEOUT, Process, Processes, accepts, wait_until
from tests.support.stuck import DEAD_NAME_SERVER, STUCK

TCP = "tcp://127.0.0.1:0"
#: Maximum interval of watchdog messages, in microseconds.
WATCHDOG = 200_000
#: Seconds without a message after which the watchdog counts as silent.
SILENCE = 1.0

#: The value of NOTIFY_SOCKET, and a function that waits for the next message.
Notified: TypeAlias = tuple[str, Callable[..., str]]


@pytest.fixture
def manager(processes: Processes, short_path: Path) -> Iterator[Manager]:
    with ExitStack() as opened:
        yield Manager(processes, opened, f"{short_path}/echo")


@pytest.mark.fault(row=23, injected="a TCP, a Unix and a UDP socket are passed")
def test_every_passed_socket_is_served(manager: Manager, backend: str) -> None:
    process = manager.serve("--backend", backend)

    assert process.addresses == manager.addresses
    assert all(echoes(address) for address in process.addresses)
    assert end(process) == ""


@pytest.mark.fault(row=23, injected="three sockets are passed as web, local, web; the server asks for web")
@pytest.mark.by_turns("backend")
def test_an_fd_name_serves_all_its_sockets_and_the_rest_is_a_warning(manager: Manager, backend: str) -> None:
    process = manager.serve("-b", "fd://web", "--backend", backend, listeners=2)

    assert process.addresses == [manager.addresses[0], manager.addresses[2]]
    assert all(echoes(address) for address in process.addresses)
    assert end(process) == "main: passed, but not served: fd://4 (local)\n"


def test_bind_addresses_override_passed_sockets(manager: Manager) -> None:
    process = manager.serve("-b", TCP, "-b", "fd://4", listeners=2)

    assert process.addresses[1:] == [manager.addresses[1]]
    assert all(echoes(address) for address in process.addresses)
    assert end(process) == "main: passed, but not served: fd://3 (web), fd://5 (web)\n"


@pytest.mark.fault(row=23, injected="LISTEN_PID is another process")
def test_sockets_passed_to_another_pid_are_not_served(processes: Processes) -> None:
    environ = os.environ | {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
    process = processes.serve("-b", TCP, env=environ)
    assert echoes(process.addresses[0])
    assert end(process) == ""

    status, _, errors = processes.run("serve", "-b", "fd://web", env=environ)
    assert (status, errors) == (3, "anyecho: cannot listen on fd://web: no service manager passed anything\n")


@pytest.mark.fault(row=23, injected="LISTEN_FDS is one too many or no number; LISTEN_FDNAMES too few")
@pytest.mark.parametrize(
    ("arguments", "options", "line"),
    [
        (
            ["-b", "fd://Web"],
            {},
            "cannot listen on fd://Web: nothing of that name was passed, only 'web', 'local'",
        ),
        (
            ["-b", "fd://web", "-b", "fd://3"],
            {},
            "cannot listen on fd://3: another descriptor here is the same socket",
        ),
        (
            [],
            {"LISTEN_FDS": "three"},
            "LISTEN_FDS is 'three', not a number above 0: is this started by a service manager?",
        ),
        (["-b", TCP], {"LISTEN_FDS": "4"}, "LISTEN_FDS says 4, but descriptor 6 is not open"),
        ([], {"names": "web"}, "LISTEN_FDS says 3, but LISTEN_FDNAMES has 1: 'web'"),
    ],
)
def test_invalid_activation_is_one_line_and_exit_3(
    arguments: list[str], options: dict[str, str], line: str, manager: Manager
) -> None:
    assert manager.refusal(*arguments, **options) == line


@pytest.mark.fault(row=23, injected="a connection is passed")
def test_a_connection_instead_of_a_listener_is_one_line(manager: Manager) -> None:
    with dial(manager.addresses[0]), manager.sockets[0].accept()[0] as accepted:
        manager.sockets[0] = accepted
        line = manager.refusal()

    assert line.startswith("cannot listen on fd://3: descriptor 3 is a connected socket, not a listening one (")
    assert line.endswith(" set Accept=no)")


def test_connections_between_two_servers_are_kept_and_echoed(manager: Manager) -> None:
    end(manager.serve())
    first, second, third = manager.addresses
    with dial(first) as tcp, dial(second) as unix, udp_client(third) as udp:
        for sock in (tcp, unix, udp):
            sock.sendall(b"between two")
        process = manager.serve()
        assert [sock.recv(100) for sock in (tcp, unix, udp)] == [b"between two"] * 3

    assert end(process) == ""


@pytest.fixture
def notify_socket(short_path: Path) -> Iterator[Notified]:
    place = f"{short_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(place)

        def next_message(timeout: float = TIMEOUT) -> str:
            sock.settimeout(timeout)
            return sock.recv(65536).decode()

        yield place, next_message


@pytest.mark.fault(row=23, injected="a watchdog of 0.2 s: a server starts, has a connection, drains")
def test_the_manager_is_notified_of_ready_watchdog_and_stopping(
    manager: Manager, backend: str, notify_socket: Notified
) -> None:
    place, next_message = notify_socket
    process = manager.start("--backend", backend, NOTIFY_SOCKET=place, WATCHDOG_USEC=str(WATCHDOG))

    assert next_message() == f"READY=1\nSTATUS=listening on {', '.join(manager.addresses)}"
    with dial(manager.addresses[0]) as sock:
        assert exchange(sock, b"hello") == b"hello"
        assert [next_message() for _ in range(3)] == ["WATCHDOG=1"] * 3
        process.signal(signal.SIGTERM)
        messages = iter(next_message, "STOPPING=1\nSTATUS=letting connections finish")
        assert set(messages) <= {"WATCHDOG=1"}
        # The watchdog messages continue during the drain.
        assert next_message() == "WATCHDOG=1"

    assert process.wait() == 0
    assert process.errors() == ""


def test_the_manager_is_notified_of_a_reload_and_its_end(
    processes: Processes, backend: str, notify_socket: Notified, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place, next_message = notify_socket
    monkeypatch.setenv("NOTIFY_SOCKET", place)
    files = files_in(tmp_path)
    shown = ("--ssl-certfile", str(files.cert), "--ssl-keyfile", str(files.key))
    process = processes.serve("-b", "tls://127.0.0.1:0", *shown, "--backend", backend)
    ready = f"READY=1\nSTATUS=listening on {process.addresses[0]}"
    assert next_message() == ready
    process.signal(signal.SIGHUP)
    assert re.fullmatch("RELOADING=1\nMONOTONIC_USEC=[0-9]+", next_message())
    assert next_message() == ready


@pytest.mark.fault(row=23, injected="a watchdog of 0.2 s: the event loop is stuck")
def test_a_stuck_loop_sends_no_watchdog_message(manager: Manager, backend: str, notify_socket: Notified) -> None:
    place, next_message = notify_socket
    variables = {"NOTIFY_SOCKET": place, "WATCHDOG_USEC": str(WATCHDOG)}
    process = manager.start("--backend", backend, before=STUCK, **variables)
    assert next_message().startswith("READY=1\n")
    with dial(manager.addresses[0]):
        process.read_errors(until="stuck\n")
        with pytest.raises(TimeoutError):
            while True:
                assert next_message(SILENCE) == "WATCHDOG=1"


def test_a_signal_before_the_server_listens_stops_it(processes: Processes, notify_socket: Notified) -> None:
    place, next_message = notify_socket
    environ = os.environ | {"NOTIFY_SOCKET": place}
    process = processes.start("serve", "-b", "tcp://slow:0", before=DEAD_NAME_SERVER, env=environ)
    process.read_errors(until="\n")
    process.signal()

    assert next_message().startswith("STOPPING=1\n")
    assert process.wait() == 0


@pytest.mark.by_turns("backend")
def test_an_unreachable_notify_socket_is_one_warning(processes: Processes, backend: str, short_path: Path) -> None:
    environ = os.environ | {"NOTIFY_SOCKET": f"{short_path}/gone", "WATCHDOG_USEC": str(WATCHDOG)}
    process = processes.serve("-b", TCP, "--backend", backend, env=environ)

    assert echoes(process.addresses[0])
    assert end(process) == f"main: cannot notify '{short_path}/gone': No such file or directory\n"


@needs_program("systemd-socket-activate")
def test_systemd_socket_activate_starts_a_server(processes: Processes, short_path: Path) -> None:
    stream, other = f"{short_path}/stream", f"{short_path}/other"
    command = ["systemd-socket-activate", "-l", stream, "-l", other, "--fdname=web:local"]
    path = [f"--setenv=PYTHONPATH={value}"] if (value := os.environ.get("PYTHONPATH")) else []
    serve = [sys.executable, "-m", "anyecho", "serve"]
    process = Process(subprocess.Popen([*command, *path, *serve], stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    processes.adopt(process)
    wait_until(lambda: os.path.exists(other))

    # The first connection starts the server.
    with dial(f"unix:{stream}") as sock:
        assert exchange(sock, b"hello") == b"hello"
    assert process.read_lines(2) == [f"unix:{stream}", f"unix:{other}"]
    assert echoes(f"unix:{other}")
    process.signal()
    assert process.wait() == 0
    assert accepts(f"unix:{other}") is False
