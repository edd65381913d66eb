"""``anyecho serve --control``: real clients of toxiproxy, hostile peers, and mistakes in the flags."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from toxiproxy import Toxiproxy
from toxiproxy.api import APIConsumer
from toxiproxy.exceptions import InvalidToxic, NotFound, ProxyExists

from tests.cli.conftest import Run
from tests.support.machine import ABSENT, needs_epoll, program
from tests.support.peers import dial, exchange, receive, receive_all
from tests.support.process import TIMEOUT, Process, Processes

#: `tests/server/test_control.py` has the routes on each backend.
pytestmark = pytest.mark.by_turns("backend")

TCP = "tcp://127.0.0.1:0"
SCRIPT = Path(__file__).with_name("toxiproxy_client.js")


@pytest.fixture
def process(processes: Processes, backend: str) -> Process:
    return processes.serve(TCP, "--control", "127.0.0.1:0", "--backend", backend, listeners=2)


@pytest.fixture
def echo(process: Process) -> Iterator[socket.socket]:
    """A connection to the server, which echoes at the begin and at the end of the test."""
    with dial(process.addresses[0]) as sock:
        assert exchange(sock, b"hello") == b"hello"
        yield sock
        assert exchange(sock, b"goodbye") == b"goodbye"
    process.signal()
    assert process.wait() == 0


@pytest.fixture
def client(process: Process, monkeypatch: pytest.MonkeyPatch) -> Toxiproxy:
    host, _, port = process.addresses[1].removeprefix("http://").rpartition(":")
    monkeypatch.setattr(APIConsumer, "host", host)
    monkeypatch.setattr(APIConsumer, "port", int(port))
    return Toxiproxy()


def version(process: Process) -> bytes:
    with urllib.request.urlopen(f"{process.addresses[1]}/version", timeout=TIMEOUT) as answer:
        body: bytes = answer.read()
        return body


def test_toxiproxy_python_changes_a_live_connection(client: Toxiproxy, process: Process) -> None:
    name = process.addresses[0].removeprefix("tcp://")
    proxy = client.get_proxy(name)
    assert (client.version(), proxy.listen, proxy.upstream) == (b'{"version": "2.12.0"}\n', name, "echo")

    with dial(name) as sock:
        assert exchange(sock, b"before") == b"before"
        proxy.add_toxic(type="latency", name="held", attributes={"latency": 1_000_000})
        sock.sendall(b"late")
        assert proxy.get_toxic("held").attributes == {"latency": 1_000_000, "jitter": 0}
        proxy.destroy_toxic("held")
        assert receive(sock, 4) == b"late"
        proxy.add_toxic(type="limit_data", attributes={"bytes": 3})
        sock.sendall(b"cut here")
        assert receive_all(sock) == b"cut"


def test_toxiproxy_python_creates_and_disables_proxies(client: Toxiproxy, process: Process) -> None:
    proxy = client.create(upstream=process.addresses[0].removeprefix("tcp://"), name="other")
    assert client.populate([{"name": "other", "listen": proxy.listen, "upstream": proxy.upstream}]) == []
    with dial(proxy.listen) as sock:
        assert exchange(sock, b"hello") == b"hello"
        with proxy.down():
            assert receive_all(sock) == b""
            with pytest.raises(ConnectionRefusedError):
                dial(proxy.listen)

    dial(proxy.listen).close()
    proxy.add_toxic(type="timeout", attributes={"timeout": 0})
    assert client.reset()
    assert client.get_proxy("other").toxics() == {}
    assert proxy.destroy()
    assert client.get_proxy("other") is None


def test_toxiproxy_python_raises_its_own_errors(client: Toxiproxy, process: Process) -> None:
    name = process.addresses[0].removeprefix("tcp://")
    proxy = client.get_proxy(name)
    proxy.add_toxic(type="noop")

    with pytest.raises(InvalidToxic):
        proxy.add_toxic(type="rain")
    with pytest.raises(ProxyExists):
        proxy.add_toxic(type="noop")
    with pytest.raises(NotFound):
        proxy.destroy_toxic("rain")
    with pytest.raises(ProxyExists):
        client.create(upstream="echo", name=name)


@pytest.fixture
def node_path() -> str:
    """Where Node finds toxiproxy-node-client: ``NODE_PATH``, as ``.ci/run`` sets it, or the global packages."""
    program("node")
    path = os.environ.get("NODE_PATH", "")
    if not path and shutil.which("npm"):
        path = subprocess.run(["npm", "root", "-g"], capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path, "toxiproxy-node-client").is_dir():
        pytest.skip(f"{ABSENT}toxiproxy-node-client for Node")
    return path


def test_toxiproxy_node_client_changes_a_live_connection(process: Process, node_path: str) -> None:
    address, url = process.addresses
    command = ["node", str(SCRIPT), url, address.removeprefix("tcp://")]
    ran = subprocess.run(
        command, env={**os.environ, "NODE_PATH": node_path}, capture_output=True, text=True, timeout=2 * TIMEOUT
    )

    steps = ["version", "echo", "add", "change", "remove", "forward", "disable", "reset", "delete"]
    assert (ran.stdout.split(), ran.stderr, ran.returncode) == (steps, "", 0)


def test_dripped_and_broken_requests_leave_the_echo_alone(
    echo: socket.socket, process: Process, opened: ExitStack
) -> None:
    dripping = [opened.enter_context(dial(process.addresses[1].replace("http", "tcp"))) for _ in range(10)]
    for byte in b"POST /proxies HT":
        for sock in dripping:
            sock.send(bytes([byte]))
        assert exchange(echo, b"x") == b"x"

    for garbage in (os.urandom(4096), b"\x16\x03\x01\x02", b"\r\n" * 2000, b"GET /\r\n\r\n"):
        with dial(process.addresses[1].replace("http", "tcp")) as sock, suppress(OSError):
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            assert receive_all(sock).startswith(b"HTTP/1.1 4")

    assert version(process).startswith(b'{"version"')


def test_headers_of_a_mebibyte_are_refused_and_leave_the_echo_alone(echo: socket.socket, process: Process) -> None:
    with dial(process.addresses[1].replace("http", "tcp")) as sock:
        with suppress(OSError):  # the server may close before all is sent
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 175_000)
        with suppress(ConnectionResetError):
            assert receive_all(sock).startswith(b"HTTP/1.1 431 ")

    assert version(process).startswith(b'{"version"')


def test_idle_peers_do_not_keep_requests_out(echo: socket.socket, process: Process, opened: ExitStack) -> None:
    for _ in range(100):
        opened.enter_context(dial(process.addresses[1].replace("http", "tcp")))

    assert version(process).startswith(b'{"version"')


def test_a_process_out_of_descriptors_still_echoes_and_answers_later(
    processes: Processes, backend: str, opened: ExitStack
) -> None:
    process = processes.serve(
        *(TCP, "--control", "127.0.0.1:0", "--backend", backend, "--max-connections", "1000"),
        listeners=2,
        descriptors=64,
    )
    echo = opened.enter_context(dial(process.addresses[0]))
    assert exchange(echo, b"hello") == b"hello"
    with ExitStack() as many:
        for _ in range(60):
            many.enter_context(dial(process.addresses[0]))
            with suppress(OSError):
                many.enter_context(dial(process.addresses[1].replace("http", "tcp")))
        assert exchange(echo, b"x") == b"x"

    assert version(process).startswith(b'{"version"')
    assert exchange(echo, b"x") == b"x"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ("udp://127.0.0.1:0", "--control", "0"),
            "--control has no effect: every address is for UDP",
        ),
        pytest.param(
            (TCP, "--control", "0", "--engine", "events"),
            "--control needs a task for each connection: --engine must be auto or tasks",
            marks=needs_epoll,
        ),
        (
            (TCP, "--control", "0", "--workers", "1"),
            "--control and --workers exclude each other: a worker that is replaced would lose its changes",
        ),
        (
            (TCP, "--control", "udp://:1"),
            "--control is plain HTTP: give HOST:PORT or unix:/path, not udp://:1",
        ),
        ((TCP, "--control", "x"), "bad address 'x': the port is missing: tcp://host:port"),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], error: str, run: Run) -> None:
    status, output, errors = run("serve", *arguments)

    assert (status, output, errors) == (2, b"", f"anyecho: {error}\n")


def test_a_control_address_in_use_ends_the_start(run: Run, process: Process) -> None:
    taken = process.addresses[1].removeprefix("http://")
    status, output, errors = run("serve", TCP, "--control", taken)

    assert (status, output) == (3, b"")
    assert errors == f"anyecho: cannot listen on tcp://{taken}: it is in use already\n"
