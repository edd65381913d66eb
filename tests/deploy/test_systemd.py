"""The systemd units of deploy/: valid, hardened, and a server works under their restrictions."""

from __future__ import annotations

import ctypes
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from anyecho.server.options import ServeOptions
from tests.deploy.commands import DEPLOY, on_backend, read_unit
from tests.deploy.sandbox import allowed_calls, sandbox
from tests.support.activation import Manager, echoes, end
from tests.support.machine import needs_program, skip
from tests.support.process import Processes

SERVICE, SOCKET = "anyecho.service", "anyecho.socket"
#: Highest exposure by ``systemd-analyze security``, in tenths: 0 is best, 100 worst; without hardening it is 96.
EXPOSURE = 15


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units, with a program that is on this machine: systemd-analyze looks for it."""
    paths = [tmp_path / name for name in (SOCKET, SERVICE)]
    for path in paths:
        text = (DEPLOY / "systemd" / path.name).read_text()
        path.write_text(text.replace("/opt/anyecho/bin/anyecho", sys.executable))
    return paths


@needs_program("systemd-analyze")
def test_the_units_are_valid(units: list[Path]) -> None:
    command = ["systemd-analyze", "verify", *map(str, units)]
    verified = subprocess.run(command, capture_output=True, text=True, timeout=30)

    # An unknown key is a line of output, not a failure.
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


@needs_program("systemd-analyze")
def test_the_service_is_hardened(units: list[Path]) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE}", "--no-pager"]
    result = subprocess.run([*command, str(units[1])], capture_output=True, text=True, timeout=30)

    assert result.returncode == 0, result.stdout or result.stderr


def test_a_stop_leaves_time_for_a_drain() -> None:
    service, options = read_unit(SERVICE), ServeOptions()
    assert options.graceful_timeout is not None
    assert options.linger is not None
    assert float(service["TimeoutStopSec"][0]) > options.graceful_timeout + options.linger + 5


def test_the_descriptors_suffice_for_the_limit_on_connections() -> None:
    assert int(read_unit(SERVICE)["LimitNOFILE"][0]) >= ServeOptions().max_connections + 64


@pytest.fixture
def manager(processes: Processes, short_path: Path) -> Iterator[Manager]:
    with ExitStack() as opened:
        yield Manager(processes, opened, f"{short_path}/echo")


def needs_seccomp() -> None:
    with suppress(OSError):
        ctypes.CDLL("libseccomp.so.2")
        # PR_GET_MDWE
        if ctypes.CDLL(None).prctl(66, 0, 0, 0, 0) >= 0:
            return

    skip("libseccomp, or prctl(PR_SET_MDWE) of Linux 6.3")


@needs_program("systemd-analyze")
@pytest.mark.parametrize("workers", [None, "2"])
@pytest.mark.by_turns("workers")
def test_a_server_needs_no_system_call_that_the_service_forbids(
    manager: Manager, backend: str, workers: str | None
) -> None:
    needs_seccomp()
    unit = read_unit(SERVICE)
    [_, serve, *arguments] = shlex.split(unit["ExecStart"][0])
    assert serve == "serve"
    arguments += ["--workers", workers] if workers else []
    process = manager.serve(*on_backend(arguments, backend), before=sandbox(unit))

    assert process.addresses == manager.addresses
    assert all(echoes(address) for address in process.addresses)
    if workers is None:
        process.signal(signal.SIGHUP)
        assert "SIGHUP is ignored" in process.read_errors(until="\n")
    assert end(process) == ""


@needs_program("systemd-analyze")
def test_the_service_forbids_a_system_call_of_the_administrator(processes: Processes) -> None:
    """The restrictions take effect: otherwise the test above could not fail."""
    needs_seccomp()
    unit = read_unit(SERVICE)
    assert "socket" in allowed_calls(unit)
    process = processes.start("serve", before=sandbox(unit) + "import os; os.chroot('/')\n")

    assert process.wait() == -signal.SIGSYS
