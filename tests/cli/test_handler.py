"""``--handler`` and ``--forward``: what serves a connection, and one line for a wrong value."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.support.peers import converse, dial
from tests.support.process import Processes

OWN = """
async def reverse(stream):
    async for chunk in stream:
        await stream.send(chunk[::-1])
async def generate(stream):
    yield await stream.receive()
def plain(stream):
    return 7
number = 7
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("import absent_module")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("own", "broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "reply"), [("echo", b"ab"), ("discard", b""), ("upper", b"AB"), ("own:reverse", b"ba")]
)
@pytest.mark.usefixtures("directory")
def test_a_server_runs_the_named_handler(name: str, reply: bytes, processes: Processes) -> None:
    server = processes.serve("-b", "tcp://127.0.0.1:0", "--handler", name)
    assert converse(dial(server.addresses[0]), b"ab") == reply


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "uper",
            "no such name (did you mean upper?); "
            "there are echo, discard, chargen, upper, prefix, and module:function",
        ),
        ("own:revers", "own has no 'revers' (did you mean reverse?)"),
        ("own:number", "it is not an async function"),
        ("own:plain", "it is not an async function"),
        ("own:generate", "it is not an async function"),
        ("os:getcwd", "it is not an async function"),
        ("own:", "own has no ''"),
        ("absent:f", "cannot import 'absent': ModuleNotFoundError: No module named 'absent'"),
        ("broken:f", "cannot import 'broken': ModuleNotFoundError: No module named 'absent_module'"),
        (":f", "cannot import '': ValueError: Empty module name"),
    ],
)
@pytest.mark.usefixtures("directory")
def test_a_wrong_handler_is_one_line(name: str, reason: str, run: Run) -> None:
    result = run("serve", ":0", "--handler", name)
    assert result == (2, b"", f"anyecho: --handler {name!r}: {reason}\n")


def test_a_handler_for_datagrams_is_one_line(run: Run) -> None:
    status, _, errors = run("serve", "udp://127.0.0.1:0", "--handler", "upper")
    text = "--handler is for streams of bytes: datagrams, as on udp://127.0.0.1:0, are only echoed"
    assert (status, errors) == (2, f"anyecho: {text}\n")


def test_a_server_forwards_to_another_one(processes: Processes) -> None:
    upstream = processes.serve("-b", "tcp://127.0.0.1:0", "--handler", "upper")
    server = processes.serve("-b", "tcp://127.0.0.1:0", "--forward", upstream.addresses[0])
    assert converse(dial(server.addresses[0]), b"ab") == b"AB"


@pytest.mark.parametrize("workers", [(), ("--workers", "1")])
def test_a_server_that_would_forward_to_itself_is_one_line(
    workers: tuple[str, ...], tmp_path: Path, processes: Processes
) -> None:
    own = f"unix:{tmp_path}/own"
    error = f"anyecho: cannot forward to {own}: this server listens there itself\n"
    assert processes.run("serve", own, "--forward", own, *workers) == (2, b"", error)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ("--forward", "udp://localhost:1"),
            "cannot forward to udp://localhost:1: give a TCP or Unix address without ?proxy=",
        ),
        (
            ("--forward", "localhost:0"),
            "cannot forward to tcp://localhost:0: port 0 is any free port, and only for servers",
        ),
        (("--forward", ":1", "--handler", "upper"), "--forward and --handler exclude each other"),
    ],
)
def test_a_wrong_upstream_is_one_line(arguments: tuple[str, ...], error: str, processes: Processes) -> None:
    assert processes.run("serve", ":0", *arguments) == (2, b"", f"anyecho: {error}\n")
