"""``anyecho serve`` as a real process, with clients of several programs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.support.machine import needs, needs_ipv6, netcat, program, skip
from tests.support.peers import dial, exchange, receive_all
from tests.support.process import TIMEOUT, Process, Processes, accepts, port_of, round_trip, unwritable, wait_until

TCP = "tcp://127.0.0.1:0"
#: More than the kernels' buffers hold: to send everything before reading, or the reverse, deadlocks.
LARGE = os.urandom(8 << 20)

#: Clients of other programs, to a port and to a path. Each half-closes, then reads until EOF.
CLIENTS: dict[str, tuple[list[str], list[str]]] = {
    "socat": (["socat", "-t20", "-", "TCP:127.0.0.1:{port}"], ["socat", "-t20", "-", "UNIX-CONNECT:{path}"]),
    "ncat": (["ncat", "127.0.0.1", "{port}"], ["ncat", "-U", "{path}"]),
    "nc, OpenBSD": (["nc", "-N", "127.0.0.1", "{port}"], ["nc", "-N", "-U", "{path}"]),
    "nc, Ncat": (["nc", "127.0.0.1", "{port}"], ["nc", "-U", "{path}"]),
    "nc, traditional": (["nc", "-q", "20", "127.0.0.1", "{port}"], []),
}


@pytest.fixture(params=["nc", "socat", "ncat"])
def client(request: pytest.FixtureRequest) -> str:
    word: str = request.param
    return f"nc, {netcat()}" if word == "nc" else program(word)


def call(command: list[str], payload: bytes, **place: object) -> bytes:
    """Return the output of the client `command`, connected to `place`, for `payload`."""
    words = [word.format(**place) for word in command]
    return subprocess.run(words, input=payload, stdout=subprocess.PIPE, timeout=TIMEOUT, check=True).stdout


def stop(process: Process) -> list[str]:
    """Send SIGTERM; return the lines of standard error."""
    process.signal()
    assert process.wait() == 0
    return process.errors().splitlines()


def test_a_large_payload_is_echoed_completely(processes: Processes, backend: str) -> None:
    [address] = processes.serve("-b", TCP, "--backend", backend).addresses

    assert round_trip(address, LARGE) == LARGE
    assert round_trip(address, b"") == b""


def test_clients_of_other_programs_get_their_echo_over_tcp(processes: Processes, client: str) -> None:
    [address] = processes.serve("-b", TCP).addresses
    # The traditional nc does not read while it writes: with more than the buffers hold, it deadlocks.
    payload = LARGE[:1000] if client == "nc, traditional" else LARGE

    assert call(CLIENTS[client][0], payload, port=port_of(address)) == payload


def test_clients_of_other_programs_get_their_echo_over_a_unix_socket(
    processes: Processes, client: str, short_path: Path
) -> None:
    command = CLIENTS[client][1]
    if not command:
        skip(f"Unix sockets in {client}")
    path = short_path / "echo"
    processes.serve("-b", f"unix:{path}")

    assert call(command, LARGE, path=path) == LARGE


def test_each_address_is_reported_on_a_line_once_it_accepts(
    processes: Processes, backend: str, short_path: Path
) -> None:
    path, abstract = f"unix:{short_path}/echo", f"unix:@anyecho-{short_path.name}"
    process = processes.serve("-b", TCP, "-b", path, "-b", abstract, "--backend", backend, listeners=3)

    assert process.addresses == [f"tcp://127.0.0.1:{port_of(process.addresses[0])}", path, abstract]
    assert port_of(process.addresses[0]) > 0
    for address in process.addresses:
        assert round_trip(address, b"hello") == b"hello"


@needs_ipv6
def test_localhost_is_both_loopback_addresses_on_one_port(processes: Processes) -> None:
    process = processes.serve("-b", "localhost:0", listeners=2)
    port = port_of(process.addresses[0])

    assert process.addresses == [f"tcp://127.0.0.1:{port}", f"tcp://[::1]:{port}"]
    assert [round_trip(address, b"hello") for address in process.addresses] == [b"hello"] * 2


def test_an_inherited_socket_is_served_and_its_address_reported(processes: Processes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        descriptor = listener.fileno()
        process = processes.serve("-b", f"fd://{descriptor}", pass_fds=[descriptor])

        assert process.addresses == [f"tcp://127.0.0.1:{listener.getsockname()[1]}"]
        assert round_trip(process.addresses[0], b"hello") == b"hello"


def test_a_server_whose_listener_fails_is_exit_1(processes: Processes, backend: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"fd://{listener.fileno()}"
        process = processes.serve("-b", address, "--backend", backend, pass_fds=[listener.fileno()])
        listener.shutdown(socket.SHUT_RDWR)  # accept(2) fails, in the server too

        assert process.wait() == 1
        assert process.errors() == "anyecho: [Errno 22] Invalid argument\n"


def test_a_socket_file_is_removed_at_exit(processes: Processes, short_path: Path) -> None:
    path = short_path / "echo"
    process = processes.serve("-b", f"unix:{path}")
    assert path.is_socket()
    stop(process)

    assert not path.exists()


def test_a_stale_socket_file_is_replaced(processes: Processes, short_path: Path) -> None:
    path = short_path / "echo"
    killed = processes.serve("-b", f"unix:{path}")
    killed.signal(signal.SIGKILL)
    killed.wait()
    assert path.is_socket()

    assert round_trip(processes.serve("-b", f"unix:{path}").addresses[0], b"hello") == b"hello"


@pytest.mark.fault(row=22, injected="a second process listens on the path of a live server")
def test_a_socket_file_of_a_running_server_is_not_replaced(processes: Processes, short_path: Path) -> None:
    address = f"unix:{short_path}/echo"
    processes.serve("-b", address)

    assert processes.run("serve", "-b", address) == (
        3,
        b"",
        f"anyecho: cannot listen on {address}: it is in use already\n",
    )
    assert round_trip(address, b"hello") == b"hello"


def test_a_server_without_errors_prints_only_its_addresses(processes: Processes) -> None:
    process = processes.serve("-b", TCP)
    round_trip(process.addresses[0], b"hello")

    assert stop(process) == []
    assert process.popen.stdout is not None
    assert process.popen.stdout.read() == b""


def test_the_log_is_the_conversation_of_the_original_example(processes: Processes, backend: str) -> None:
    process = processes.serve("-b", "localhost:0", "--backend", backend, "--log-level", "debug")
    with dial(process.addresses[0]) as sock:
        peer = f"127.0.0.1_{sock.getsockname()[1]}"
        for message in (b"This is the message. ", b"It will be sent ", b"in parts."):
            assert exchange(sock, message) == message
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b""

    assert stop(process) == [
        f"main: starting up on localhost port {port_of(process.addresses[0])}",
        f"echo_{peer}: connection accepted",
        f"echo_{peer}: received b'This is the message. '",
        f"echo_{peer}: sent b'This is the message. '",
        f"echo_{peer}: received b'It will be sent '",
        f"echo_{peer}: sent b'It will be sent '",
        f"echo_{peer}: received b'in parts.'",
        f"echo_{peer}: sent b'in parts.'",
        f"echo_{peer}: closing",
        "main: closing server",
    ]


def test_info_has_no_line_per_chunk(processes: Processes) -> None:
    process = processes.serve("-b", TCP, "--log-level", "info")
    with dial(process.addresses[0]) as sock:
        peer = f"127.0.0.1_{sock.getsockname()[1]}"
        assert exchange(sock, b"hello") == b"hello"
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b""

    assert stop(process)[1:-1] == [f"echo_{peer}: connection accepted", f"echo_{peer}: closing"]


def test_bytes_of_the_network_are_escaped_and_long_chunks_shortened(processes: Processes) -> None:
    process = processes.serve("-b", TCP, "--log-level", "debug")
    payload = b"\x1b[31m\r\n\xff" + b"x" * 500
    assert round_trip(process.addresses[0], payload) == payload

    [line] = [line for line in stop(process) if ": received " in line]
    assert line.partition(": ")[2] == r"received b'\x1b[31m\r\n\xff" + "x" * 56 + "'... (508 bytes)"


def test_a_unix_peer_is_named_by_its_pid(processes: Processes, short_path: Path) -> None:
    process = processes.serve("-b", f"unix:{short_path}/echo", "--log-level", "info")
    round_trip(process.addresses[0], b"hello")

    lines = stop(process)
    assert lines[0] == f"main: starting up on unix:{short_path}/echo"
    assert lines[1] == f"echo_unix_{os.getpid()}: connection accepted"


def test_the_access_log_has_a_line_per_closed_connection(processes: Processes) -> None:
    process = processes.serve("-b", TCP, "--access-log", "--log-format", "json")
    with dial(process.addresses[0]) as sock:
        peer = f"127.0.0.1_{sock.getsockname()[1]}"
        assert exchange(sock, b"hello") == b"hello"
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b""

    [line] = stop(process)
    facts = {"peer": peer, "reason": "eof", "bytes_received": 5, "bytes_sent": 5}
    assert json.loads(line).items() >= ({"logger": "anyecho.access", "level": "info"} | facts).items()


def test_every_line_is_json_with_log_format_json(processes: Processes) -> None:
    process = processes.serve("-b", TCP, "--log-level", "debug", "--log-format", "json")
    round_trip(process.addresses[0], b'"\xff\n')

    messages = [json.loads(line)["message"] for line in stop(process)]
    assert messages[1:] == [
        "connection accepted",
        r"""received b'"\xff\n'""",
        r"""sent b'"\xff\n'""",
        "closing",
        "closing server",
    ]


def test_idle_timeout_from_the_environment_closes_an_idle_connection(processes: Processes) -> None:
    environment = os.environ | {"ANYECHO_IDLE_TIMEOUT": "400ms", "ANYECHO_ACCESS_LOG": "true"}
    process = processes.serve("-b", TCP, env=environment)
    with dial(process.addresses[0]) as sock:
        assert exchange(sock, b"hello") == b"hello"
        began = monotonic()
        assert receive_all(sock) == b""
        assert monotonic() - began > 0.3

    assert "reason=idle" in stop(process)[0]


def test_a_connection_over_the_maximum_waits_in_the_backlog(processes: Processes) -> None:
    process = processes.serve("-b", TCP, "--max-connections", "1", "--log-level", "info")
    with dial(process.addresses[0]) as first:
        assert exchange(first, b"hello") == b"hello"
        with dial(process.addresses[0]) as second:
            names = [f"echo_127.0.0.1_{sock.getsockname()[1]}" for sock in (first, second)]
            second.sendall(b"patience")
            assert exchange(first, b"still here") == b"still here"
            first.close()
            assert second.recv(8, socket.MSG_WAITALL) == b"patience"

    lines = stop(process)[1:-1]
    assert lines == [f"{name}: {what}" for name in names for what in ("connection accepted", "closing")]


@needs(Path("/proc/self/task").exists(), "a list of threads")
def test_a_server_without_log_lines_has_a_single_thread(backend: str, processes: Processes) -> None:
    """With a second thread, every system call on a descriptor would take a reference to its file."""
    # A thread looks up the name, and ends.
    process = processes.serve("-b", "tcp://localhost:0", "--backend", backend)
    assert round_trip(process.addresses[0], b"hello") == b"hello"
    wait_until(lambda: len(os.listdir(f"/proc/{process.pid}/task")) == 1)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("kind", ["full", "gone"])
def test_a_server_continues_when_standard_error_cannot_be_written(
    processes: Processes, short_path: Path, stream: str, kind: str
) -> None:
    path = short_path / "echo"
    end = unwritable(kind)
    streams: dict[str, Any] = {stream: end}
    process = processes.start("serve", "-b", f"unix:{path}", "--log-level", "debug", **streams)
    os.close(end)
    wait_until(lambda: accepts(f"unix:{path}"))

    assert round_trip(f"unix:{path}", b"hello") == b"hello"
    process.signal()
    assert process.wait() == 0


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_a_server_started_with_a_closed_standard_stream_serves(
    processes: Processes, short_path: Path, closed: tuple[int, ...]
) -> None:
    path = short_path / "echo"
    process = processes.start("serve", "-b", f"unix:{path}", "--log-level", "debug", closed=closed)
    wait_until(lambda: accepts(f"unix:{path}"))

    assert round_trip(f"unix:{path}", b"hello") == b"hello"
    process.signal()
    assert process.wait() == 0


def test_an_address_that_cannot_be_printed_is_a_warning(processes: Processes) -> None:
    with open("/dev/full", "wb") as full:
        process = processes.start("serve", "-b", TCP, stdout=full)

    line = "main: cannot report the addresses: No space left on device\n"
    assert process.read_errors(until="\n") == line
    process.signal()
    assert process.wait() == 0


def test_an_unread_log_delays_neither_the_echo_nor_the_exit(processes: Processes) -> None:
    process = processes.serve(
        *("-b", TCP, "--log-level", "debug"),
        before="import anyecho.cli.logs as logs; logs._QUEUE_SIZE = 100; ",
    )
    assert process.popen.stderr is not None
    fcntl.fcntl(process.popen.stderr, fcntl.F_SETPIPE_SZ, 4096)
    with dial(process.addresses[0]) as sock:
        for _ in range(500):
            assert exchange(sock, b"hello") == b"hello"

    process.signal()
    assert process.wait() == 0
    assert process.errors().count("\n") < 500


def test_unread_addresses_do_not_delay_connections(processes: Processes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write_end, bytes(4096))
        os.set_blocking(write_end, True)
        with open(read_end, "rb"):
            address = f"fd://{given.fileno()}"
            process = processes.start("serve", "-b", address, stdout=write_end, pass_fds=[given.fileno()])
            os.close(write_end)
            with socket.create_connection(given.getsockname()) as sock:
                sock.settimeout(TIMEOUT)
                assert exchange(sock, b"hello") == b"hello"

            process.signal()
            assert process.wait() == 0
