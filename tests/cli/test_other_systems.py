"""Real processes without epoll and without the names that macOS and FreeBSD lack."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.process import Processes
from tests.support.without_epoll import SYSTEMS, prelude

#: Imports every module of the package but the one that runs it, those that need ctypes, and, because hdrhistogram
#: needs it, those of the verbs that measure with histograms.
IMPORT_ALL = """
import importlib, pkgutil, anyecho
from anyecho.errors import StartError
for module in pkgutil.walk_packages(anyecho.__path__, "anyecho."):
    if module.name in ("anyecho.__main__", "anyecho.net.udp.mmsg", "anyecho.net.timerfd"):
        continue
    try:
        importlib.import_module(module.name)
    except StartError as exc:
        assert str(exc) == "histograms need ctypes, which this Python does not have"
        assert module.name.startswith(("anyecho.measure.", "anyecho.cli."))
"""


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> str:
    """The system whose missing names are removed from the processes."""
    name: str = request.param
    return name


def test_every_module_can_be_imported_without_the_names_of_linux(system: str) -> None:
    code = prelude(system).replace("; ", "\n") + IMPORT_ALL
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.by_turns("backend")
def test_serve_and_send_work_without_the_names_of_linux(
    system: str, backend: str, processes: Processes, short_path: Path
) -> None:
    before = prelude(system)
    addresses = ("127.0.0.1:0", f"unix:{short_path / 'echo'}", "udp://127.0.0.1:0")
    binds = [word for address in addresses for word in ("--bind", address)]
    server = processes.serve(*binds, "--backend", backend, listeners=3, before=before)
    for address in server.addresses:
        sent = processes.run("send", address, "hello", "--backend", backend, before=before)
        assert sent == (0, b"hello", ""), address

    server.signal()
    assert server.wait() == 0


@pytest.mark.parametrize("arguments", [("bench", "127.0.0.1:1"), ("report", "result.json")])
def test_histograms_without_ctypes_are_one_line(arguments: tuple[str, ...], processes: Processes) -> None:
    status, output, errors = processes.run(*arguments, before=prelude("macos"))
    assert (status, output) == (3, b"")
    assert errors == "anyecho: histograms need ctypes, which this Python does not have\n"


def test_the_events_engine_without_epoll_is_refused_in_one_line(processes: Processes) -> None:
    status, output, errors = processes.run(
        "serve", "--bind", "127.0.0.1:0", "--engine", "events", before=prelude("gevent")
    )
    assert (status, output) == (3, b"")
    assert errors == "anyecho: the events engine needs epoll, which this system does not have\n"
