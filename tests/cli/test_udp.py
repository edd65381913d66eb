"""``anyecho serve`` and ``anyecho send`` over UDP, as real processes."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from threading import Thread

import pytest

from anyecho.cli.main import main
from anyecho.threaded import threaded_server
from tests.cli.conftest import Run
from tests.support.datagrams import udp_client
from tests.support.machine import needs_ipv6, program, skip
from tests.support.process import TIMEOUT, Process, Processes, port_of

UDP = "udp://127.0.0.1:0"
#: They end at different conditions, so each is killed after its answer. Every nc supports -u.
CLIENTS = {
    "nc": ["nc", "-u", "127.0.0.1", "{port}"],
    "socat": ["socat", "-", "UDP:127.0.0.1:{port}"],
    "ncat": ["ncat", "-u", "127.0.0.1", "{port}"],
}


@pytest.fixture
def address(addresses: dict[str, str]) -> str:
    return addresses["udp"]


@pytest.fixture
def unbound() -> str:
    """An address on which nothing listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"udp://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("client", list(CLIENTS))
def test_clients_of_other_programs_get_their_echo(client: str, processes: Processes) -> None:
    program(client)
    port = port_of(processes.serve("-b", UDP).addresses[0])
    command = [word.format(port=port) for word in CLIENTS[client]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as popen:
        process = Process(popen)
        processes.adopt(process)
        assert popen.stdin is not None
        popen.stdin.write(b"hello\n")
        popen.stdin.flush()
        assert process.read_lines(1) == ["hello"]
        popen.kill()


@needs_ipv6
def test_each_family_is_reported(processes: Processes) -> None:
    process = processes.serve("-b", "udp://localhost:0", "--log-level", "info", listeners=2)
    port = port_of(process.addresses[0])

    assert process.addresses == [f"udp://127.0.0.1:{port}", f"udp://[::1]:{port}"]
    process.signal()
    assert process.wait() == 0
    assert f"main: starting up on localhost port {port} (UDP)" in process.errors()


def test_each_message_is_echoed_as_a_datagram(processes: Processes, backend: str) -> None:
    [address] = processes.serve("-b", UDP, "--backend", backend).addresses
    arguments = ["send", address, "--backend", backend, "--repeat", "2", "one", "", "two"]

    assert processes.run(*arguments) == (0, b"onetwoonetwo", "")


def test_each_line_of_standard_input_is_a_datagram(processes: Processes, address: str, backend: str) -> None:
    lines = ["first\n", "\n", "x" * 65506 + "\n", "last"]
    arguments = ["send", address, "--backend", backend, "--log-level", "debug"]
    status, output, errors = processes.run(*arguments, stdin="".join(lines).encode())

    assert (status, output) == (0, "".join(lines).encode())
    assert errors.count("echo_client: sending ") == len(lines)


def test_a_file_is_one_datagram(run: Run, address: str, tmp_path: Path) -> None:
    file = tmp_path / "packet"
    file.write_bytes(b"with\nlines\n".ljust(65507, b"x"))
    status, output, errors = run("send", address, "--file", str(file), "--repeat", "2", "--log-level", "debug")

    assert (status, output) == (0, file.read_bytes() * 2)
    assert errors.count("echo_client: sending b'with\\nlines\\n") == 2


def test_an_empty_file_is_an_empty_datagram(run: Run, address: str) -> None:
    status, output, errors = run("send", address, "--file", os.devnull, "--log-level", "debug")

    assert (status, output) == (0, b"")
    assert "echo_client: received b''" in errors


@pytest.mark.parametrize("kind", ["message", "file", "line"])
def test_input_too_large_for_a_datagram_is_one_line(
    kind: str, processes: Processes, address: str, tmp_path: Path
) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"x" * 65_508)
    given = {"message": ["x" * 65_508], "file": ["--file", str(file)], "line": []}[kind]
    status, output, errors = processes.run("send", address, *given, stdin=b"x" * 200_000)

    assert (status, output, errors.count("\n")) == (2, b"", 1)
    assert errors.endswith(" is too large for a datagram, which holds at most 65507 bytes\n")


@pytest.mark.parametrize("flags", [[], ["--file", "/dev/zero"]], ids=["line", "file"])
def test_endless_input_is_not_read_for_ever(flags: list[str], processes: Processes, address: str) -> None:
    with open("/dev/zero", "rb") as endless:
        process = processes.start("send", address, *flags, stdin=endless)

    assert process.wait() == 2
    assert "too large for a datagram" in process.errors()


def test_a_loss_is_one_line_and_the_rest_is_written(run: Run, backend: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        echoing = Thread(target=lambda: [server.sendto(*server.recvfrom(100)) for _ in range(2)])
        echoing.start()
        address = f"udp://127.0.0.1:{server.getsockname()[1]}"
        ended = run("send", address, "--backend", backend, "--timeout", "500ms", "a", "b", "c")
        echoing.join()

    assert ended == (1, b"ab", "anyecho: 1 of 3 datagrams were lost (no answer within 500ms)\n")


def test_a_refused_datagram_is_exit_3(unbound: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["send", unbound, "hello"]) == 3
    assert capfd.readouterr() == ("", f"anyecho: cannot reach {unbound}: Connection refused\n")


def test_a_drop_is_logged_with_the_flags_of_its_limit(processes: Processes) -> None:
    process = processes.serve("-b", UDP, "--udp-rate", "1/1h", "--udp-burst", "1")
    with udp_client(process.addresses[0]) as sock:
        for payload in (b"one", b"two"):
            sock.send(payload)
        assert sock.recv(100) == b"one"
        where = f"127.0.0.1 port {sock.getsockname()[1]}"

    line = process.read_errors(until="\n")
    assert line.startswith(f"main: dropping datagrams from {where}: it sends more than ")
    assert line.endswith("/s (--udp-rate, --udp-burst)\n")


@pytest.mark.parametrize("flags", [[], ["--unsafe-udp"]])
def test_a_privileged_source_port_needs_unsafe_udp(flags: list[str], processes: Processes) -> None:
    process = processes.serve("-b", UDP, *flags)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(("127.0.0.1", 1000))
        except OSError as exc:
            skip(f"the privileged port 1000 ({exc.strerror})")
        sock.settimeout(TIMEOUT)
        sock.sendto(b"hello", ("127.0.0.1", port_of(process.addresses[0])))
        if flags:
            assert sock.recv(100) == b"hello"
        else:
            assert "port 1000: no client's port is below 1024 (--unsafe-udp" in process.read_errors(until="\n")


def test_a_signal_ends_a_udp_server_at_once_and_frees_the_port(processes: Processes, backend: str) -> None:
    server = processes.serve("-b", UDP, "--backend", backend)
    server.signal()
    assert server.wait() == 0
    with threaded_server(server.addresses[0]) as again:
        assert str(again.address) == server.addresses[0]
