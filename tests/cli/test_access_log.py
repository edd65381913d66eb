"""The access log of a process: its lines, and a standard error that accepts none."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.request import urlopen

import pytest

from tests.support.certificates import Files
from tests.support.peers import dial, exchange, receive_all
from tests.support.pipes import unread_pipe
from tests.support.process import TIMEOUT, Process, Processes, unwritable

TCP = "tcp://127.0.0.1:0"
VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
#: Connections, of two lines each.
_COUNT = 20
_SMALL_QUEUE = "import anyecho.cli.logs as logs\nlogs._QUEUE_SIZE = 5\n"


def converse(address: str) -> int:
    """Have one echo; return the local port."""
    with dial(address) as sock:
        assert exchange(sock, b"hello") == b"hello"
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b""
        port: int = sock.getsockname()[1]
        return port


def lines_of(process: Process) -> Iterator[dict[str, Any]]:
    process.signal()
    assert process.wait() == 0
    yield from map(json.loads, process.errors().splitlines())


def stats_of(process: Process) -> dict[str, int]:
    with urlopen(f"{process.addresses[1]}/stats", timeout=TIMEOUT) as response:
        counters: dict[str, int] = json.load(response)
        return counters


@pytest.mark.by_turns("engine")
def test_each_opened_and_closed_connection_is_a_line(processes: Processes, backend: str, engine: str) -> None:
    options = ("--backend", backend, "--engine", engine, "--log-format", "json")
    process = processes.serve("--access-log=all", "--bind", TCP, *options)
    [address] = process.addresses
    port = converse(address)

    opened, closed = lines_of(process)
    of_the_peer = {"peer": f"127.0.0.1_{port}", "peer_address": "127.0.0.1", "peer_port": port, "listener": address}
    echoed = {"reason": "eof", "bytes_received": 5, "bytes_sent": 5, "seconds": closed["seconds"]}
    head = {"logger": "anyecho.access", "time": opened["time"]}
    assert opened == head | of_the_peer | {"level": "debug", "message": "opened"}
    head["time"] = closed["time"]
    assert closed == head | of_the_peer | echoed | {"level": "info", "message": "closed"}


@pytest.mark.by_turns("backend")
@pytest.mark.parametrize("version", VERSIONS)
def test_lines_of_a_tls_connection_have_version_cipher_and_server_name(
    processes: Processes, files: Files, backend: str, engine: str, version: str
) -> None:
    options = ("--backend", backend, "--engine", engine, "--log-format", "json", "--ssl-certfile", str(files.cert))
    process = processes.serve("tls://127.0.0.1:0", "--access-log=all", "--ssl-keyfile", str(files.key), *options)
    context = ssl.create_default_context(cafile=files.cacert)
    context.maximum_version = VERSIONS[version]
    with dial(process.addresses[0]) as sock, context.wrap_socket(sock, server_hostname="localhost") as over_tls:
        over_tls.sendall(b"hello")
        assert over_tls.recv(5) == b"hello"
        cipher = over_tls.cipher()

    assert cipher is not None
    session = {"tls": version, "cipher": cipher[0], "sni": "localhost", "listener": process.addresses[0]}
    opened, closed = lines_of(process)
    assert opened.items() >= (session | {"message": "opened"}).items()
    assert closed.items() >= (session | {"message": "closed"}).items()


def test_a_failed_handshake_and_a_rejected_connection_are_lines_without_a_session(
    processes: Processes, files: Files
) -> None:
    files_flags = ("--ssl-certfile", str(files.cert), "--ssl-keyfile", str(files.key))
    process = processes.serve(
        "tls://127.0.0.1:0", "--max-connections-per-ip=1", "--access-log=all", "--log-format=json", *files_flags
    )
    [address] = process.addresses
    with dial(address), dial(address) as second:
        assert receive_all(second) == b""

    rejected, failed = lines_of(process)
    assert (rejected["message"], rejected["reason"]) == ("closed", "per_ip")
    assert rejected["peer_address"] == "127.0.0.1"
    assert (failed["message"], failed["reason"]) == ("closed", "handshake")
    assert not {"tls", "cipher", "sni"} & (rejected.keys() | failed.keys())


@pytest.mark.parametrize("word", [(), ("--log-level", "error")])
def test_a_switch_without_a_value_leaves_the_next_word(processes: Processes, word: tuple[str, ...]) -> None:
    process = processes.serve("--access-log", *word, TCP)
    port = converse(process.addresses[0])
    process.signal()

    assert process.wait() == 0
    line = rf"\S+ info access: closed peer=127.0.0.1_{port} listener={process.addresses[0]} reason=eof .*\n"
    assert re.fullmatch(line, process.errors())


@pytest.mark.fault(
    row=27, injected="standard error is a full pipe, in blocking mode or not; its reader continues later"
)
@pytest.mark.by_turns("engine")
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_a_full_pipe_stops_no_echo_and_the_dropped_lines_are_counted_in_the_log(
    processes: Processes, backend: str, engine: str, blocking: bool
) -> None:
    options = ["--backend", backend, "--engine", engine, "--access-log=all", "--log-format=json"]
    with unread_pipe(blocking=blocking) as (read_end, write_end):
        options += ["--admin", "127.0.0.1:0"]
        process = processes.serve(TCP, *options, before=_SMALL_QUEUE, stderr=write_end, listeners=2)
        for _ in range(_COUNT):
            converse(process.addresses[0])
        counted = stats_of(process)["log_lines_dropped"]

        text = b""
        while b"were dropped" not in text:
            text += os.read(read_end, 65536)
        process.signal()
        assert process.wait() == 0
        # The last line of the access log may have come after the notice.
        os.set_blocking(read_end, False)
        with suppress(BlockingIOError):
            text += os.read(read_end, 65536)

    lines = [json.loads(line) for line in text.splitlines() if line]
    [notice] = [line for line in lines if line["logger"] == "anyecho"]
    dropped = 2 * _COUNT - (len(lines) - 1)
    # The last line of the access log may be late.
    assert 0 < counted <= dropped <= counted + 1
    message = f"{dropped} log lines were dropped: standard error did not accept them"
    assert (notice["level"], notice["message"]) == ("warning", message)


@pytest.mark.fault(row=27, injected="standard error is closed, its reader is gone, or its disk is full")
@pytest.mark.by_turns("engine", "backend")
@pytest.mark.parametrize("kind", ["gone", "full", "closed"])
def test_a_standard_error_that_cannot_be_written_stops_no_echo(
    processes: Processes, backend: str, engine: str, kind: str
) -> None:
    options = ("--backend", backend, "--engine", engine, "--access-log=all")
    if kind == "closed":
        process = processes.serve(TCP, *options, before=_SMALL_QUEUE, closed=[2])
    else:
        end = unwritable(kind)
        process = processes.serve(TCP, *options, before=_SMALL_QUEUE, stderr=end)
        os.close(end)
    for _ in range(_COUNT):
        converse(process.addresses[0])
    process.signal()

    assert process.wait() == 0
