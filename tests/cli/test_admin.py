"""``anyecho serve --admin`` as a real process."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from tests.cli.conftest import Run
from tests.support.peers import TIMEOUT, dial, exchange
from tests.support.process import Process, Processes, port_of

TCP = "127.0.0.1:0"


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


@pytest.fixture
def process(processes: Processes, backend: str) -> Process:
    return processes.serve("--backend", backend, TCP, "--admin", TCP, listeners=2)


@pytest.mark.by_turns("backend")
def test_the_url_is_printed_and_answers(process: Process) -> None:
    address, url = process.addresses
    with dial(address) as sock:
        assert exchange(sock, b"hello") == b"hello"
        status, text = get(f"{url}/metrics")

    assert url.startswith("http://127.0.0.1:")
    assert status == 200
    assert "\nanyecho_received_bytes_total 5.0\n" in text


def test_a_server_that_drains_answers_that_it_is_not_ready(process: Process) -> None:
    address, url = process.addresses
    with dial(address) as sock:
        assert exchange(sock, b"x") == b"x"
        assert get(f"{url}/readyz") == (200, "ready\n")
        process.signal()
        while get(f"{url}/readyz")[0] == 200:
            pass
        assert get(f"{url}/readyz") == (503, "not accepting connections\n")
        assert get(f"{url}/healthz") == (200, "ok\n")
        assert exchange(sock, b"still") == b"still"

    assert process.wait() == 0
    assert process.errors() == ""


@pytest.mark.parametrize(
    ("admin", "text", "status"),
    [
        ("udp://localhost:1", "--admin is plain HTTP: give HOST:PORT or unix:/path, not udp://localhost:1", 2),
        ("localhost:99999", "", 2),
    ],
)
def test_an_address_that_cannot_be_used_is_an_error(admin: str, text: str, status: int, run: Run) -> None:
    ended, output, errors = run("serve", TCP, "--admin", admin)

    assert (ended, output) == (status, b"")
    assert errors.startswith("anyecho: ")
    assert text in errors
    assert errors.count("\n") == 1


@pytest.mark.by_turns("backend")
def test_an_address_in_use_ends_the_start(process: Process, run: Run) -> None:
    taken = f"127.0.0.1:{port_of(process.addresses[1])}"
    ended, output, errors = run("serve", TCP, "--admin", taken)

    assert (ended, output) == (3, b"")
    assert "in use" in errors


@pytest.mark.by_turns("backend")
def test_an_address_open_to_the_network_is_warned_of(processes: Processes, backend: str) -> None:
    process = processes.serve("--backend", backend, TCP, "--admin", "0.0.0.0:0", listeners=2)
    process.signal()
    assert process.wait() == 0

    assert "admin is open to the network" in process.errors()
