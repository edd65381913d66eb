"""The Dockerfile: linted, and its commands run without Docker."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from anyecho.server.options import ServeOptions
from anyecho.units import parse_duration
from tests.deploy.commands import DEPLOY, on_backend, read_container
from tests.support.machine import skip
from tests.support.process import Processes, port_of

DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
#: Seconds until ``docker stop`` kills.
DOCKER_STOP = 10


def test_the_linter_finds_nothing() -> None:
    """hadolint checks the shell commands too (ShellCheck)."""
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or skip(
        "hadolint"
    )
    result = subprocess.run([linter, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, timeout=30)

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_drain_ends_before_docker_stop_kills() -> None:
    command = read_container().command
    grace = parse_duration(command[command.index("--graceful-timeout") + 1])
    linger = ServeOptions().linger
    assert linger is not None
    assert grace + linger < DOCKER_STOP


@pytest.mark.by_turns("backend")
def test_the_health_check_succeeds_while_the_server_runs(
    processes: Processes, backend: str, tmp_path: Path
) -> None:
    container = read_container()
    [program, verb, *arguments] = (re.sub(r":10000$", "127.0.0.1:0", word) for word in container.command)
    assert (program, verb) == ("anyecho", "serve")
    server = processes.serve(*on_backend(arguments, backend), "--access-log", listeners=2)
    (tmp_path / "anyecho").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m anyecho "$@"\n')
    (tmp_path / "anyecho").chmod(0o755)
    port = port_of(server.addresses[0])
    check = [word.replace("localhost:10000", f"127.0.0.1:{port}") for word in container.health_check]
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def status() -> int:
        return subprocess.run(check, env=environ, capture_output=True, timeout=30).returncode

    assert status() == 0
    # Not as a broken connection.
    assert " reason=eof " in server.read_errors(until="\n")
    server.signal()
    assert server.wait() == 0
    assert status() == 1


@pytest.mark.slow
def test_the_copied_files_suffice_to_build_the_package(tmp_path: Path) -> None:
    """The commands of the first stage run in another directory, without the dependencies."""
    stage = DOCKERFILE.read_text().partition("\nFROM ")[2].partition("\nFROM ")[0]
    root = DEPLOY.parent
    for words in re.findall(r"^COPY (.*)$", stage, re.MULTILINE):
        *sources, target = words.split()
        for source in sources:
            if (root / source).is_dir():
                shutil.copytree(root / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(root / source, tmp_path / target)
    [script] = re.findall(r"^RUN (.*)$", stage, re.MULTILINE)
    python = shlex.quote(sys.executable)
    # The pip of the suite installs: a new one would take seconds.
    script = script.replace(
        "/opt/anyecho/bin/pip install", f"{python} -m pip --python /opt/anyecho install --no-deps -q"
    )
    script = script.replace("python -m venv", f"{python} -m venv --without-pip").replace(
        "/opt/anyecho", f"{tmp_path}/opt"
    )
    result = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=55)
    if "No matching distribution found for hatchling" in result.stderr:
        skip("a package index")

    assert result.returncode == 0, result.stderr
    assert (tmp_path / "opt" / "bin" / "anyecho").exists()
