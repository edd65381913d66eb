"""The PROXY protocol and limits on the command line: flags, exit statuses, and the log."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Run
from tests.support.peers import dial, exchange, receive_all
from tests.support.process import Processes, round_trip

TCP = "tcp://127.0.0.1:0"
TRUSTED = ("--proxy-protocol", "require", "--proxy-trusted", "192.0.2.0/24", "--proxy-trusted", "127.0.0.1")


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.by_turns("backend")
def test_a_client_behind_a_proxy_is_in_the_access_log(processes: Processes, backend: str, version: str) -> None:
    arguments = ("--backend", backend, "--access-log", "--log-format", "json", *TRUSTED)
    server = processes.serve("-b", TCP, *arguments)
    [address] = server.addresses
    status, output, errors = processes.run("send", address, "--proxy-header", version, "hello")
    assert (status, output, errors) == (0, b"hello", "")
    line = json.loads(server.read_errors(until="\n"))

    assert line["peer"] == line["via"]  # the header asserts the own address of the client
    assert (line["reason"], line["bytes_sent"]) == ("eof", 5)


@pytest.mark.by_turns("backend")
def test_a_header_from_an_untrusted_peer_is_rejected(processes: Processes, backend: str) -> None:
    trusting = ("--proxy-protocol", "v1", "--proxy-trusted", "192.0.2.0/24")
    server = processes.serve("-b", TCP, "--backend", backend, *trusting, "--access-log")
    status, output, errors = processes.run("send", server.addresses[0], "--proxy-header", "v1", "hello")
    # 3 if the connection was closed before the header was sent.
    assert (status in (1, 3), output) == (True, b"")
    assert errors.startswith("anyecho: ")
    said = server.read_errors(until="\n")

    assert "main: rejected 127.0.0.1_" in said
    assert "its address is not in --proxy-trusted" in said


def test_the_proxy_mode_can_differ_between_addresses(processes: Processes) -> None:
    server = processes.serve("-b", f"{TCP}?proxy=v2", "-b", TCP, "--proxy-trusted", "127.0.0.1", listeners=2)
    proxied, plain = server.addresses

    assert round_trip(plain, b"PROXY") == b"PROXY"
    assert processes.run("send", proxied, "--proxy-header", "v2", "hello")[:2] == (0, b"hello")
    assert processes.run("send", proxied, "--proxy-header", "v1", "hello")[:2] == (1, b"")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--proxy-protocol", "v1"), "--proxy-trusted is missing: tcp://localhost:10000 expects a PROXY header"),
        (("-b", f"{TCP}?proxy=v2"), "--proxy-trusted is missing"),
        (("-b", f"{TCP}?proxy=v3"), "proxy is off, v1, v2, require, not 'v3'"),
        (("-b", "udp://127.0.0.1:0?proxy=v1"), "no setting 'proxy' here"),
        (("--proxy-trusted", "localhost"), "bad network 'localhost'"),
        (
            ("--engine", "events", "--rate-limit", "1k"),
            "--rate-limit needs a task for each connection: --engine must be",
        ),
        (("--write-timeout", "0"), "--write-timeout must be more than 0"),
    ],
)
def test_an_invalid_proxy_or_limit_option_is_one_line(run: Run, arguments: tuple[str, ...], message: str) -> None:
    status, output, errors = run("serve", *arguments)

    assert (status, output) == (2, b"")
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_limits_are_flags_and_variables(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYECHO_MAX_BYTES", "5")
    server = processes.serve("-b", TCP, "--max-connections-per-ip", "1", "--linger", "200ms", "--access-log")
    [address] = server.addresses
    with dial(address) as first:
        assert exchange(first, b"hello") == b"hello"
        with dial(address) as second:
            assert receive_all(second) == b""
        first.sendall(b"!")
        assert receive_all(first) == b""

    lines = server.read_errors(until="reason=bytes")
    assert lines.count("reason=per_ip") == 1


def test_rate_limit_works_with_the_automatic_engine(processes: Processes, backend: str) -> None:
    server = processes.serve("-b", TCP, "--backend", backend, "--rate-limit", "1M")
    payload = bytes(200_000)

    assert round_trip(server.addresses[0], payload) == payload
