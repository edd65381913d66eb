"""The examples of the README work as written, except for port and path."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.peers import SOON
from tests.support.process import Processes, wait_until

README = (Path(__file__).parent.parent / "README.md").read_text()
SERVER, CLIENT, BOTH, FIXTURE, UNITTEST, OVER_TLS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def test_the_server_and_the_client_talk_to_each_other(short_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def here(code: str) -> str:
        return code.replace("localhost:10000", f"127.0.0.1:{port}").replace("/tmp", str(short_path))

    path = short_path / "echo.sock"
    with subprocess.Popen([sys.executable, "-W", "error", "-c", here(SERVER)]) as server:
        try:
            wait_until(path.exists)
            assert run(here(CLIENT)) == "b'in parts'\n"
        finally:
            server.terminate()
            server.wait(SOON)


def test_the_example_with_server_and_client_runs() -> None:
    assert "bytes_sent=100000000" in run(BOTH)


@pytest.mark.parametrize("code", [FIXTURE, UNITTEST], ids=["fixture", "unittest"])
def test_the_examples_of_a_test_suite_pass(code: str, tmp_path: Path) -> None:
    (tmp_path / "test_example.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", "."]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout
    assert re.search(r"\d passed", result.stdout)


def test_an_error_of_a_server_in_its_own_task_propagates() -> None:
    code = UNITTEST.replace("tcp://127.0.0.1:0", "unix:/nonexistent/echo")
    command = [sys.executable, "-c", f"{code}\nimport unittest\nunittest.main(argv=['example'])"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.stderr.splitlines()[-1] == "FAILED (errors=1)"
    assert "BindError: cannot listen on unix:/nonexistent/echo" in result.stderr


def test_the_example_over_tls_runs() -> None:
    assert run(OVER_TLS) == "b'encrypted'\n"


def test_the_commands_behind_a_proxy_work_together(processes: Processes, short_path: Path) -> None:
    block = re.findall(r"```sh\n(.*?)```", README.partition("### Behind a proxy")[2], re.DOTALL)[0]
    commands = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    _, (serve, *served), sent = [
        [word.replace("/run", str(short_path)).replace(":7000", "127.0.0.1:0") for word in command]
        for command in commands
    ]
    assert serve == "serve"
    processes.serve(*served, listeners=2)
    assert processes.run(*sent) == (0, b"hello", "")


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"anyecho (?:serve|send)[^\n`]*?(--[a-z-]+)", README))))
def test_every_flag_in_the_readme_exists(flag: str, processes: Processes) -> None:
    helps = [processes.run(verb, "--help")[1].decode() for verb in ("serve", "send")]
    assert any(re.search(rf"{flag}\b", text) for text in helps)


def test_the_systemd_units_of_the_readme_are_valid(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    units = re.findall(r"```ini\n# /etc/systemd/system/(\S+)\n(.*?)```", README, re.DOTALL)
    assert [name for name, _ in units] == ["anyecho.socket", "anyecho.service"]
    for name, text in units:
        (tmp_path / name).write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={sys.executable}", text))
    command = ["systemd-analyze", "verify", *(tmp_path / name for name, _ in units)]
    verified = subprocess.run(command, capture_output=True, text=True, timeout=30)

    # An unknown key is a line of output, not a failure.
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
