"""Real processes without epoll and without the names that macOS and FreeBSD lack."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.process import Processes
from tests.support.without_epoll import SYSTEMS, prelude

#: Imports every module of the package but the one that runs it and the one that needs ctypes.
IMPORT_ALL = """
import importlib, pkgutil, anyecho
for module in pkgutil.walk_packages(anyecho.__path__, "anyecho."):
    if module.name not in ("anyecho.__main__", "anyecho.net.udp.mmsg"):
        importlib.import_module(module.name)
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


def test_the_events_engine_without_epoll_is_refused_in_one_line(processes: Processes) -> None:
    status, output, errors = processes.run(
        "serve", "--bind", "127.0.0.1:0", "--engine", "events", before=prelude("gevent")
    )
    assert (status, output) == (3, b"")
    assert errors == "anyecho: the events engine needs epoll, which this system does not have\n"
