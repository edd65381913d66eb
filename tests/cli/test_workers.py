"""``anyecho serve --workers``: a supervisor and its worker processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from anyecho.cli.main import main
from anyecho.server import worker_options
from anyecho.server.worker_options import WorkerOptions
from tests.support.certificates import Files, files_in
from tests.support.machine import needs_ipv6
from tests.support.peers import converse, dial, exchange, receive_all
from tests.support.process import (
    TIMEOUT,
    Process,
    Processes,
    accepts,
    descendants,
    descriptors,
    is_alive,
    port_of,
    round_trip,
    wait_until,
)

TCP = "tcp://127.0.0.1:0"


def serve(processes: Processes, *arguments: str, count: int = 2, **options: Any) -> Process:
    return processes.serve(*arguments, "--workers", str(count), **options)


@pytest.mark.by_turns("backend")
def test_two_workers_serve_one_listener(processes: Processes, backend: str, opened: ExitStack) -> None:
    process = serve(processes, "-b", TCP, "--backend", backend)
    workers = descendants(process.pid)
    assert len(workers) == 2
    assert {os.getsid(each) for each in workers} == {*workers}

    peers = [opened.enter_context(dial(process.addresses[0])) for _ in range(20)]
    assert [exchange(each, b"hello") for each in peers] == [b"hello"] * 20


@pytest.mark.by_turns("backend")
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


@pytest.mark.by_turns("backend")
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


def test_workers_serve_a_unix_socket(processes: Processes, short_path: Path) -> None:
    path = short_path / "echo"
    process = serve(processes, "-b", f"unix:{path}")
    with dial(process.addresses[0]) as sock:
        assert exchange(sock, b"hello") == b"hello"
    process.signal()

    assert process.wait() == 0
    assert not path.exists()


@pytest.mark.parametrize("value", ["0", "two", "-1", "1.5", "1025"])
def test_a_number_of_workers_out_of_range_is_a_usage_error(capfd: pytest.CaptureFixture[str], value: str) -> None:
    assert main(["serve", "-b", TCP, "--workers", value]) == 2
    assert capfd.readouterr() == ("", f"anyecho: --workers must be auto, or 1 to 1024, not {value!r}\n")


def test_no_worker_is_left_without_connections(processes: Processes, backend: str, opened: ExitStack) -> None:
    process = serve(processes, "-b", TCP, "--backend", backend)
    workers = descendants(process.pid)
    before = [descriptors(pid) for pid in workers]

    def all_have_ten() -> bool:
        assert exchange(opened.enter_context(dial(process.addresses[0])), b"hello") == b"hello"
        return all(descriptors(pid) >= count + 10 for pid, count in zip(workers, before, strict=True))

    # How even it is depends on the machine: one worker waits 2 ms for another one to accept.
    wait_until(all_have_ten)


@pytest.mark.by_turns("backend")
def test_each_worker_with_its_own_socket_gets_connections(
    processes: Processes, backend: str, opened: ExitStack
) -> None:
    process = serve(processes, "-b", TCP, "--backend", backend, "--reuseport")
    workers = descendants(process.pid)
    before = {pid: descriptors(pid) for pid in workers}

    def is_spread() -> bool:
        opened.enter_context(dial(process.addresses[0]))
        return all(descriptors(pid) > before[pid] for pid in workers)

    wait_until(is_spread)


@needs_ipv6
def test_workers_with_their_own_sockets_are_on_one_port_of_both_families(processes: Processes) -> None:
    process = processes.serve("-b", "localhost:0", "--workers", "2", "--reuseport", listeners=2)
    assert len({port_of(address) for address in process.addresses}) == 1
    assert [round_trip(address, b"hello") for address in process.addresses] == [b"hello"] * 2


def test_an_address_in_use_is_an_error_with_own_sockets_too(processes: Processes) -> None:
    first = serve(processes, "-b", TCP, "--reuseport")
    arguments = ("serve", "-b", first.addresses[0], "--workers", "2", "--reuseport")
    text = f"anyecho: cannot listen on {first.addresses[0]}: it is in use already\n"
    assert processes.run(*arguments) == (3, b"", text)


@pytest.mark.by_turns("backend")
@pytest.mark.parametrize("how", [(), ("--reuseport",)], ids=["shared", "reuseport"])
def test_workers_echo_datagrams(
    processes: Processes, backend: str, how: tuple[str, ...], opened: ExitStack
) -> None:
    process = serve(processes, "-b", "udp://127.0.0.1:0", "--backend", backend, *how)
    for number in range(20):
        sock = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.settimeout(TIMEOUT)
        sock.connect(("127.0.0.1", port_of(process.addresses[0])))
        sock.send(b"datagram %d" % number)
        assert sock.recv(100) == b"datagram %d" % number


@needs_ipv6
@pytest.mark.by_turns("backend")
def test_clients_that_trust_the_generated_ca_reach_all_workers(processes: Processes, backend: str) -> None:
    process = serve(processes, "-b", "tls://localhost:0", "--ssl-self-signed", "--backend", backend, listeners=2)
    text = process.read_errors(until="\n")
    cacert = text.split()[-1]
    assert text == f"main: generated a certificate for this run: clients trust it with --cacert {cacert}\n"
    trusting = ssl.create_default_context(cafile=cacert)
    before = descendants(process.pid)

    def reach() -> None:
        for _ in range(8):
            with trusting.wrap_socket(dial(process.addresses[0]), server_hostname="localhost") as sock:
                assert exchange(sock, b"hello") == b"hello"

    reach()
    process.signal(signal.SIGHUP)
    wait_until(lambda: not {*before} & {*descendants(process.pid)})
    reach()
    process.signal()
    assert process.wait() == 0
    assert process.errors() == ""
    assert not Path(cacert).exists()


@pytest.mark.by_turns("backend")
def test_a_roll_reloads_the_certificates(processes: Processes, backend: str, files: Files, tmp_path: Path) -> None:
    arguments = ("--ssl-certfile", str(files.cert), "--ssl-keyfile", str(files.key), "--log-level", "info")
    process = serve(processes, "-b", "tls://127.0.0.1:0", "--backend", backend, *arguments)
    port = port_of(process.addresses[0])
    before = ssl.get_server_certificate(("127.0.0.1", port))
    (tmp_path / "renewed").mkdir()
    renewed = files_in(tmp_path / "renewed")
    files.cert.write_bytes(b"damaged")
    process.signal(signal.SIGHUP)
    process.read_errors(until="the certificate stays what it was\n")
    assert ssl.get_server_certificate(("127.0.0.1", port)) == before

    files.cert.write_bytes(renewed.cert.read_bytes())
    files.key.write_bytes(renewed.key.read_bytes())
    old = descendants(process.pid)
    process.signal(signal.SIGHUP)
    process.read_errors(until="all workers are replaced\n")
    wait_until(lambda: not any(map(is_alive, old)))
    assert ssl.get_server_certificate(("127.0.0.1", port)) == renewed.cert.read_text()


def test_a_line_of_the_log_names_its_worker(processes: Processes, opened: ExitStack) -> None:
    process = serve(processes, "-b", TCP, "--access-log=all", "--log-format", "json")
    named = set()

    def both_have_logged() -> bool:
        opened.enter_context(dial(process.addresses[0]))
        named.add(json.loads(process.read_errors(until="\n"))["worker"])
        return named == {1, 2}

    wait_until(both_have_logged)


@pytest.mark.parametrize(
    ("group", "quota", "expected"),
    [
        ("0::/", "max 100000", 8),
        ("0::/", "150000 100000", 2),
        ("1:cpu:/old\n0::/system.slice/echo.service\n", "1000 100000", 1),
        ("1:cpu:/old\n", "1000 100000", 8),
    ],
)
def test_auto_is_a_worker_per_core_within_the_quota_of_the_control_group(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, group: str, quota: str, expected: int
) -> None:
    (tmp_path / "self").write_text(group)
    for directory in (tmp_path, tmp_path / "system.slice/echo.service"):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(worker_options, "_CGROUP_OF_SELF", tmp_path / "self")
    monkeypatch.setattr(worker_options, "_CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(8)}, raising=False)
    assert WorkerOptions(workers="auto").count == expected


def test_variables_set_the_workers(processes: Processes) -> None:
    environ = os.environ | {"ANYECHO_WORKERS": "2", "ANYECHO_BIND": TCP, "ANYECHO_IDLE_TIMEOUT": "1h"}
    process = processes.serve(env=environ)
    assert len(descendants(process.pid)) == 2
    assert round_trip(process.addresses[0], b"hello") == b"hello"


def test_an_option_without_effect_is_reported_once(processes: Processes, short_path: Path) -> None:
    process = serve(processes, "-b", f"unix:{short_path}/echo", "--no-keepalive")
    process.signal()
    assert process.wait() == 0
    assert process.errors() == "main: without effect: --no-keepalive (no address is for TCP)\n"


def test_the_seed_of_the_faults_is_logged_once_and_repeats_the_run(processes: Processes) -> None:
    arguments = ("-b", TCP, "--fault", "cut:bytes=2,toxicity=0.5")
    process = serve(processes, *arguments, count=1)
    text = process.read_errors(until="\n")
    seed = text.split()[-1]
    assert text == f"main: the workers misbehave on purpose: cut, seed {seed}\n"
    again = serve(processes, *arguments, "--seed", seed, count=1)

    def outcomes(process: Process) -> list[bytes]:
        return [converse(dial(process.addresses[0]), b"hello") for _ in range(20)]

    assert outcomes(process) == outcomes(again)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--max-connections", "2", "--workers", "3"), "--max-connections must be at least the number of workers"),
        (("--reuseport",), "--reuseport needs --workers"),
        (("--heartbeat-timeout", "9s"), "--heartbeat-timeout needs --workers"),
        (("--heartbeat-timeout", "1s", "--workers", "2"), "--heartbeat-timeout must be 5 or more seconds, not 1"),
        (("--handler", "ehco", "--workers", "2"), "--handler 'ehco': no such name (did you mean echo?)"),
        (("--lifeline", "7777",), "descriptor 7777 is no end of a lifeline: only a supervisor passes one"),
    ],
)  # fmt: skip
def test_a_wrong_option_of_workers_is_a_usage_error(
    capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], text: str
) -> None:
    assert main(["serve", "-b", TCP, *arguments]) == 2
    output, errors = capfd.readouterr()
    assert output == ""
    assert errors.startswith(f"anyecho: {text}")


def test_the_service_manager_is_notified_of_start_roll_and_end(processes: Processes, short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{short_path}/notify")
        manager.settimeout(TIMEOUT)
        process = serve(processes, "-b", TCP, env=os.environ | {"NOTIFY_SOCKET": f"{short_path}/notify"})
        assert manager.recv(4096).startswith(b"READY=1\nSTATUS=listening on tcp://127.0.0.1:")
        process.signal(signal.SIGHUP)
        assert manager.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert manager.recv(4096).startswith(b"READY=1\n")
        process.signal()
        assert manager.recv(4096).startswith(b"STOPPING=1\n")
        assert process.wait() == 0
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
