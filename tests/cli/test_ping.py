"""``anyecho ping`` as a real process: lines, exit statuses, signals, and outputs that cannot be written."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from anyecho.cli.main import main
from tests.cli.conftest import Run
from tests.support.machine import needs_ipv6
from tests.support.pipes import unread_pipe
from tests.support.process import TIMEOUT, Process, Processes, peer, unwritable, wait_until

#: A time in milliseconds, with as many digits as ping(8) shows.
MS = r"(\d\.\d{2,3}|\d\d\.\d|\d{3,})"


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a listener that never accepts: the kernel takes the probes, and no echo returns."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"


def counting(sock: socket.socket) -> None:
    """Echo the first two probes; a script for `peer`."""
    for _ in range(2):
        sock.sendall(sock.recv(56))
    sock.recv(1 << 16)
    sock.recv(1 << 16)


def rest_of(process: Process) -> str:
    """Read standard output up to the end of the process."""
    assert process.popen.stdout is not None
    return process.popen.stdout.read().decode()


@pytest.mark.by_turns("backend")
def test_the_lines_are_those_of_ping(processes: Processes, address: str, backend: str) -> None:
    status, output, errors = processes.run("ping", "-c", "3", "-i", "1ms", address, "--backend", backend)

    where = re.escape(address)
    expected = [
        rf"PING {where} 56 bytes of data\.",
        *(rf"56 bytes from {where}: seq={n} time={MS} ms" for n in (1, 2, 3)),
        "",
        rf"--- {where} ping statistics ---",
        r"3 packets transmitted, 3 received, 0% packet loss, time \d+ms",
        r"rtt min/avg/max/mdev = (\d+\.\d{3}/){3}\d+\.\d{3} ms",
        r"rtt p50/p95/p99 = -/-/- ms",
        r"jitter \(p95 - p50\) = - ms",
    ]
    assert (status, errors) == (0, "")
    assert re.fullmatch("\n".join(expected) + "\n", output.decode())


def test_letters_may_be_combined_and_their_values_attached(addresses: dict[str, str], run: Run) -> None:
    address = addresses["tcp"]
    status, output, _ = run("ping", "-qc21", "-i0", "-s8", "-W5", "-w20", address)

    lines = output.decode().splitlines()
    assert status == 0
    assert lines[0] == f"PING {address} 8 bytes of data."
    assert re.fullmatch(r"21 packets transmitted, 21 received, 0% packet loss, time \d+ms", lines[3])
    assert re.fullmatch(r"rtt p50/p95/p99 = \d+\.\d{3}/-/- ms", lines[5])


@pytest.mark.by_turns("backend")
def test_a_connection_for_each_probe_shows_its_steps(
    processes: Processes, addresses: dict[str, str], backend: str
) -> None:
    arguments = ["ping", addresses["tcp"], "--connect", "-c2", "-i0", "--backend", backend]
    status, output, errors = processes.run(*arguments)

    assert (status, errors) == (0, "")
    steps = rf"\(dns {MS}, connect {MS}, echo {MS}\)"
    assert re.search(rf"(?m)^56 bytes from \S+: seq=2 time={MS} ms {steps}$", output.decode())
    assert {line.split(" ")[0] for line in output.decode().splitlines() if "mdev" in line} == {
        "dns",
        "connect",
        "echo",
        "rtt",
    }


@needs_ipv6
def test_a_family_is_chosen(processes: Processes) -> None:
    server = processes.serve("-b", "tcp://localhost:0", listeners=2)
    port = server.addresses[0].rpartition(":")[2]
    for flag, peer_of_family in (("-4", "127.0.0.1"), ("-6", "[::1]")):
        _, output, _ = processes.run("ping", flag, "-c1", f"localhost:{port}")
        assert f"PING tcp://localhost:{port} (tcp://{peer_of_family}:{port}) 56 " in output.decode()


@pytest.mark.parametrize(
    ("carrier", "connect"),
    [("tcp", []), ("udp", []), ("unix", []), ("tcp", ["--connect"]), ("unix", ["--connect"])],
)
def test_json_is_an_object_a_line(addresses: dict[str, str], run: Run, carrier: str, connect: list[str]) -> None:
    status, output, errors = run("ping", "--json", "-c3", "-i1ms", addresses[carrier], *connect)

    objects = [json.loads(line) for line in output.splitlines()]
    assert (status, errors) == (0, "")
    assert [each["event"] for each in objects] == ["reply"] * 3 + ["summary"]
    assert all(0 < each["rtt"] < 20 for each in objects[:3])
    assert all(sum(each.get("steps", {}).values()) <= each["rtt"] for each in objects[:3])
    assert objects[3]["rtt"]["max"] == max(each["rtt"] for each in objects[:3])
    assert objects[3]["received"] == 3


def test_sigquit_prints_the_summary_so_far_and_sigint_ends(processes: Processes, backend: str) -> None:
    with peer(counting) as address:
        process = processes.start("ping", address, "-i", "10ms", "--backend", backend)
        process.read_lines(3)
        for _ in range(2):
            process.signal(signal.SIGQUIT)
            progress = process.read_errors(until="\n")
            figures = r"min/avg/ewma/max = (\d+\.\d{3}/){3}\d+\.\d{3} ms"
            assert re.fullmatch(rf"2/\d+ packets, \d+% loss, {figures}\n", progress)
        process.signal(signal.SIGINT)
        output = rest_of(process)
        assert process.wait() == 0

    title = re.escape(f"--- {address} ping statistics ---")
    counts = r"\d+ packets transmitted, 2 received(, \+\d+ \w+)*, [\d.]+% packet loss, time \d+ms"
    assert re.search(rf"(?m)^{title}\n{counts}\nrtt min", output)
    assert process.errors() == ""


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_a_signal_without_any_reply_prints_the_summary(
    processes: Processes, backend: str, silent: str, signum: signal.Signals, status: int
) -> None:
    process = processes.start("ping", silent, "-i", "1h", "--backend", backend)
    process.read_lines(1)
    process.signal(signum)

    assert process.wait() == status
    title = re.escape(f"--- {silent} ping statistics ---")
    counts = r"1 packets transmitted, 0 received, 100% packet loss, time \d+ms"
    assert re.fullmatch(f"\n{title}\n{counts}\n", rest_of(process))
    assert process.errors() == ""


def test_a_signal_during_json_output_ends_with_the_summary(processes: Processes, addresses: dict[str, str]) -> None:
    process = processes.start("ping", "--json", "-i1ms", addresses["tcp"])
    process.read_lines(2)
    process.signal(signal.SIGQUIT)
    assert "% loss, min/avg/ewma/max = " in process.read_errors(until="\n")
    process.signal(signal.SIGINT)
    objects = [json.loads(line) for line in rest_of(process).splitlines()[-1:]]

    assert process.wait() == 0
    assert objects[-1]["event"] == "summary"
    assert objects[-1]["received"] >= 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("ping", "requires an argument"),
        ("ping localhost:1 -c 0", "--count must be 1 or more, not 0"),
        ("ping localhost:1 -c 1.5", "'1.5' is not a whole number"),
        ("ping localhost:1 -i -1", "'-1' is not a duration"),
        ("ping localhost:1 -i off", "--interval must be 0 or more and finite, not inf"),
        ("ping localhost:1 -s 0", "--size must be 1 or more: a stream has no empty messages"),
        ("ping udp://localhost:1 -s 65508", "--size must be at most 65507, the largest datagram, not 65508"),
        ("ping udp://localhost:1 --connect", "--connect has no effect: udp://localhost:1 has no connections"),
        ("ping localhost:1 -W 0", "--timeout must be more than 0, not 0"),
        ("ping localhost:1 -w nonsense", "'nonsense' is not a duration"),
        ("ping localhost:1 -4 -6", "-4 and -6 exclude each other"),
        ("ping localhost", "bad address 'localhost'"),
        ("ping localhost:1 -f", "unknown option -f: did you mean --interval 0?"),
        ("ping localhost:1 --cert x", "--cert has no effect: tcp://localhost:1 is not over TLS"),
        ("ping fd://3", "cannot connect to fd://3: a descriptor is for servers"),
        ("ping nosuch.invalid:1", "cannot connect to tcp://nosuch.invalid:1: no such host"),
        ("ping --connect nosuch.invalid:1", "cannot connect to tcp://nosuch.invalid:1: no such host"),
        ("ping unix:/nonexistent/echo", "cannot connect to unix:/nonexistent/echo: No such file or directory"),
        ("ping localhost:0", "cannot connect to tcp://localhost:0: port 0 is any free port, and only for servers"),
    ],
)
def test_an_error_is_one_line_and_status_2(arguments: str, line: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 2
    output, errors = capfd.readouterr()
    assert output == ""
    assert errors.startswith("anyecho: ")
    assert line in errors
    assert errors.count("\n") == 1


def test_refused_datagrams_are_said_and_status_2(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{unused.getsockname()[1]}"

    assert main(["ping", "-c1", address]) == 2
    output, errors = capfd.readouterr()
    assert "Connection refused: lost seq=1\n" in output
    assert "1 packets transmitted, 0 received, +1 errors, 100% packet loss" in output
    assert errors == ""


def test_no_answer_by_the_deadline_is_status_1(silent: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ping", "-w", "300ms", "-c", "2", "-i", "1h", silent]) == 1
    assert "1 packets transmitted, 0 received, 100% packet loss" in capfd.readouterr().out


def test_a_wrong_byte_is_said_and_status_1(capfd: pytest.CaptureFixture[str]) -> None:
    def lie(sock: socket.socket) -> None:
        sock.sendall(sock.recv(56))
        second = sock.recv(56)
        sock.sendall(bytes([*second[:55], second[55] ^ 1]))
        sock.recv(1)

    with peer(lie) as address:
        status = main(["ping", "-c2", "-i0", address])

    output, errors = capfd.readouterr()
    assert (status, errors) == (1, "")
    assert re.search(r"seq=2 byte 55 is wrong: sent 0x[0-9a-f]{2}, got 0x[0-9a-f]{2}\n", output)


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
@pytest.mark.parametrize(("kind", "reason"), [("full", "No space left on device"), ("gone", "Broken pipe")])
@pytest.mark.by_turns("backend")
def test_an_unwritable_output_is_one_line_and_status_2(
    processes: Processes, addresses: dict[str, str], backend: str, kind: str, reason: str, json_flag: list[str]
) -> None:
    end = unwritable(kind)
    process = processes.start("ping", addresses["tcp"], *json_flag, "--backend", backend, stdout=end)
    os.close(end)

    assert process.errors() == f"anyecho: cannot write to standard output: {reason}\n"
    assert process.wait() == 2


def test_a_slow_reader_loses_no_line_and_stops_the_probes(processes: Processes, backend: str) -> None:
    count = 2000
    seen: list[int] = []
    polled: list[int] = []

    def echo(sock: socket.socket) -> None:
        while probe := sock.recv(56):
            seen.append(len(probe))
            sock.sendall(probe)

    def have_probes_stopped() -> bool:
        polled.append(len(seen))
        return polled[-1] > 0 and polled[-30:] == polled[-1:] * 30

    with peer(echo) as address:
        process = processes.start("ping", address, f"-c{count}", "-i0", "--backend", backend)
        assert process.popen.stdout is not None
        # Lines for 64 KiB are kept in the process besides.
        fcntl.fcntl(process.popen.stdout, fcntl.F_SETPIPE_SZ, 4096)
        wait_until(have_probes_stopped)
        assert len(seen) < count
        lines = process.popen.stdout.read().decode().splitlines()

    assert process.wait() == 0
    assert [line.split("seq=")[1].split(" ")[0] for line in lines if "seq=" in line] == [
        str(n) for n in range(1, count + 1)
    ]
    assert lines[-4].startswith(f"{count} packets transmitted, {count} received, 0% packet loss")


def test_a_second_sigint_ends_a_ping_whose_reader_is_stuck(processes: Processes, backend: str) -> None:
    began = Event()

    def begin(sock: socket.socket) -> None:
        sock.recv(1)
        began.set()
        sock.recv(1 << 16)

    with peer(begin) as address, unread_pipe() as (_, write_end):
        process = processes.start("ping", address, "--backend", backend, stdout=write_end)
        assert began.wait(TIMEOUT)
        process.signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.signal(signal.SIGINT)

        assert process.wait() == -signal.SIGINT


def test_a_server_that_starts_again_is_pinged_again(processes: Processes, short_path: Path) -> None:
    address = f"unix:{short_path}/echo"
    first = processes.serve("-b", address)
    process = processes.start("ping", address, "-i", "10ms")
    process.read_lines(2)
    first.signal(signal.SIGKILL)
    first.wait()
    process.read_lines(2)
    processes.serve("-b", address)
    output = ""
    while f"reconnected to {address}" not in output:
        output += "\n".join(process.read_lines(1))
    process.read_lines(1)
    process.signal(signal.SIGINT)

    assert process.wait() == 0
