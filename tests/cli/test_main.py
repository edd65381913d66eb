"""Errors: one line on standard error, nothing on standard output, and the exit status of their kind."""

from __future__ import annotations

import importlib
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Literal

import pytest

from anyecho import __main__ as entry
from anyecho import backends
from anyecho.cli.main import app, main
from tests.support.process import TIMEOUT, Processes, descriptors

# By its name, because `anyecho.cli.main` is a module that holds a function of the same name.
main_module = importlib.import_module("anyecho.cli.main")

#: Runs a command; returns its exit status and its line on standard error.
ExpectError = Callable[..., tuple[int, str]]


@pytest.fixture
def expect_error(capfd: pytest.CaptureFixture[str]) -> ExpectError:
    """Runs a command that must print one line on standard error and nothing else."""

    def run(*arguments: str) -> tuple[int, str]:
        before = descriptors()
        status = main(arguments)
        output, errors = capfd.readouterr()
        assert output == ""
        assert re.fullmatch(r"anyecho: .+\n", errors), errors
        assert descriptors() == before, "descriptors leak"
        return status, errors.removeprefix("anyecho: ").rstrip("\n")

    return run


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def dead() -> Iterator[str]:
    """An address that is bound but does not listen: connections are refused."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"tcp://127.0.0.1:{sock.getsockname()[1]}"


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that fails for every name."""

    def look_up(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("nosuch", "nosuch"),
        ("serve --nosuch", "--nosuch"),
        ("serve stray", "stray"),
        ("serve --idle-timeout", "--idle-timeout requires an argument"),
        ("serve --idle-timeout soon", "'soon' is not a duration"),
        ("serve --idle-timeout -1s", "--idle-timeout"),
        ("serve --idle-timeout 0", "--idle-timeout must be more than 0"),
        ("serve --handshake-timeout 0", "--handshake-timeout must be more than 0"),
        ("serve --ssl-keyfile key.pem", "--ssl-keyfile needs --ssl-certfile"),
        ("serve --ssl-cert-reqs maybe", "none.*optional.*required"),
        ("serve --sndbuf 0.5", "'0.5' is not a size"),
        ("serve --max-connections many", "--max-connections"),
        ("serve --max-connections 0", "--max-connections must be 1 or more"),
        ("serve --max-connections off", "--max-connections: 'off' is not a whole number"),
        ("serve --backlog=-1", "--backlog must be 0 or more"),
        ("serve --backend nosuch", "asyncio.*uvloop.*trio"),
        ("serve --log-level nosuch", "debug.*info.*warning.*error"),
        ("serve --log-format xml", "text.*json"),
        ("serve -b nonsense", "the port is missing"),
        ("serve -b tcp://localhost:99999", "port 99999 is not in 0..65535"),
        ("serve -b http://localhost:80", "no such scheme"),
        ("serve -b tcp://127.0.0.1:0 -b nonsense", "'nonsense'"),
        ("send", "ADDRESS requires an argument"),
        ("send nonsense hello", "the port is missing"),
        ("send localhost:1 --timeout 0 hello", "--timeout must be more than 0"),
        ("serve --ssl-cert-reqs required", "--ssl-cert-reqs required needs --ssl-ca-certs"),
        ("serve --min-rate=-1", "--min-rate.*'-1' is not a rate"),
        ("send localhost:1 --deadline soon hello", "'soon' is not a duration"),
        ("send localhost:1 --file /proc/no-such-file", "/proc/no-such-file: No such file"),
        ("send localhost:1 --file x hello", "exclude each other"),
        ("send localhost:1 -4 -6 hello", "-4 and -6"),
        ("send tls://localhost:1 --key key.pem hello", "--key needs --cert"),
        ("send tls://localhost:1 --alpn é hello", "no ALPN protocols"),
        ("send localhost:1 --repeat 0 hello", "--repeat must be 1 or more"),
        ("send localhost:1 --repeat 2", "standard input can be read only once"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_2(expect_error: ExpectError, arguments: str, line: str) -> None:
    status, text = expect_error(*arguments.split())

    assert re.search(line, text)
    assert status == 2


def test_an_invalid_environment_variable_is_named(
    expect_error: ExpectError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYECHO_IDLE_TIMEOUT", "soon")
    status, line = expect_error("serve")

    assert "ANYECHO_IDLE_TIMEOUT: 'soon' is not a duration" in line
    assert status == 2


@pytest.mark.fault(row=26, injected="an address of another machine")
@pytest.mark.fault(row=22, injected="a path in /proc, in a missing directory, below a file, or of a device")
@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("tcp://192.0.2.1:0", "no such address"),  # a documentation address (RFC 5737)
        ("unix:/proc/echo", ""),
        ("unix:/proc/no-such-directory/echo", "No such file or directory"),
        ("unix:/dev/null/echo", "Not a directory"),
        ("unix:/dev/null", "not a socket"),
        ("fd://999999", "descriptor 999999 is not open"),
    ],
)
def test_a_bind_error_is_exit_3_and_names_address_and_reason(
    expect_error: ExpectError, address: str, why: str
) -> None:
    status, line = expect_error("serve", "-b", address)

    assert line.startswith(f"cannot listen on {address}: ")
    assert why in line
    assert status == 3


@pytest.mark.fault(row=26, injected="a port in use, beside a usable port or path")
@pytest.mark.parametrize("first", ["tcp://127.0.0.1:0", "unix:{path}"])
def test_a_port_in_use_leaves_nothing_half_bound(
    expect_error: ExpectError, taken: str, short_path: Path, first: str
) -> None:
    path = short_path / "echo"
    status, line = expect_error("serve", "-b", first.format(path=path), "-b", taken)

    assert line == f"cannot listen on {taken}: it is in use already"
    assert status == 3
    assert not path.exists()


def test_a_file_that_is_not_a_socket_is_not_removed(expect_error: ExpectError, short_path: Path) -> None:
    path = short_path / "precious"
    path.write_text("mine")
    status, _ = expect_error("serve", "-b", f"unix:{path}")

    assert status == 3
    assert path.read_text() == "mine"


def test_a_refused_connection_is_exit_3(expect_error: ExpectError, dead: str) -> None:
    status, line = expect_error("send", dead, "hello")

    assert line == f"cannot connect to {dead}: Connection refused"
    assert status == 3


@pytest.mark.fault(row=26, injected="an unknown host")
@pytest.mark.usefixtures("nameless")
@pytest.mark.parametrize(
    ("arguments", "what"),
    [("serve -b tcp://nohost:7", "listen on"), ("send tcp://nohost:7 hello", "connect to")],
)
def test_an_unknown_host_is_exit_3(expect_error: ExpectError, arguments: str, what: str) -> None:
    status, line = expect_error(*arguments.split())

    assert line == f"cannot {what} tcp://nohost:7: no such host (Name or service not known)"
    assert status == 3


def test_a_missing_unix_socket_is_exit_3(expect_error: ExpectError, short_path: Path) -> None:
    status, line = expect_error("send", f"unix:{short_path}/echo", "hello")

    assert line == f"cannot connect to unix:{short_path}/echo: No such file or directory"
    assert status == 3


@pytest.mark.parametrize(("family", "address"), [("-4", "tcp://[::1]:1"), ("-6", "tcp://127.0.0.1:1")])
def test_an_address_of_the_other_family_is_exit_3(expect_error: ExpectError, family: str, address: str) -> None:
    status, line = expect_error("send", address, family, "hello")

    assert line.startswith(f"cannot connect to {address}: ")
    assert status == 3


@pytest.mark.parametrize(
    ("backend", "command"),
    [("uvloop", "pip install 'anyecho[uvloop]'"), ("trio", "pip install trio")],
)
@pytest.mark.parametrize("arguments", ["serve -b tcp://127.0.0.1:0", "send localhost:1 hello"])
def test_a_missing_backend_is_exit_3_and_names_the_command_that_installs_it(
    expect_error: ExpectError, monkeypatch: pytest.MonkeyPatch, backend: str, command: str, arguments: str
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    status, line = expect_error(*arguments.split(), "--backend", backend)

    assert line == f"{backend} is not installed: {command}"
    assert status == 3


def test_an_error_about_a_value_with_a_newline_is_one_line(expect_error: ExpectError) -> None:
    _, line = expect_error("send", "localhost:1", "--file", "/proc/two\nlines")

    assert line == "cannot read /proc/two lines: No such file or directory"


def test_an_error_can_contain_undecodable_bytes(expect_error: ExpectError) -> None:
    status, _ = expect_error("send", "localhost:1", "--file", "/proc/\udcff")

    assert status == 2


def test_the_version_names_backends_and_python(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0

    output, errors = capfd.readouterr()
    assert re.fullmatch(r"anyecho \S+ \(anyio [\d.]\S*, trio \d\S*, uvloop \d\S*, Python 3\.\S+\)\n", output)
    assert errors == ""


def test_the_version_names_missing_backends(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name == "uvloop":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("importlib.metadata.version", version)

    assert main(["--version"]) == 0
    assert "(anyio 1.0, trio 1.0, no uvloop, " in capfd.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_the_verbs_and_what_they_do(processes: Processes, arguments: list[str]) -> None:
    # In a process of its own: here, another test may have imported the verbs.
    status, output, errors = processes.run(*arguments)

    for verb, summary in {"serve": "Run an echo server", "send": "Send messages", "ping": "Send small"}.items():
        assert re.search(rf"\b{verb}\b.*{summary}".encode(), output)
    assert (status, errors) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_contains_the_verbs_and_their_flags(shell: Literal["bash", "zsh", "fish"]) -> None:
    script = app.generate_completion(shell=shell)

    for word in ("serve", "send", "idle-timeout", "access-log", "max-connections", "deadline", "repeat", "uvloop"):
        assert re.search(rf"\b{word}\b", script), word


def test_the_bash_completion_is_valid_bash() -> None:
    script = app.generate_completion(shell="bash").encode()

    subprocess.run(["bash", "-n"], input=script, check=True, timeout=TIMEOUT)


def test_the_package_can_be_run() -> None:
    done = subprocess.run([sys.executable, "-m", "anyecho", "--version"], capture_output=True, timeout=TIMEOUT)

    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"anyecho ")


def test_the_package_exits_with_the_status_of_its_command() -> None:
    command = [sys.executable, "-m", "anyecho", "nosuch"]
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT)

    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1


def test_ctrl_c_before_anything_is_set_up_is_exit_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "main", interrupted)
    with pytest.raises(SystemExit) as caught:
        entry.main()

    assert caught.value.code == 130
