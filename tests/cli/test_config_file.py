"""Options from the file of --config: precedence, names in messages, and wrong files, keys and values."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import check_output
from typing import Any

import pytest

from anyecho.cli.environment import ENVIRONMENT
from anyecho.cli.main import app, main
from tests.support.certificates import Files
from tests.support.process import Processes, round_trip

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"
TCP = "tcp://127.0.0.1:0"

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write text to ``echo.toml`` in the working directory; return the name of the file."""
    monkeypatch.chdir(tmp_path)

    def to_file(text: str) -> str:
        (tmp_path / "echo.toml").write_text(text)
        return "echo.toml"

    return to_file


def parse(*tokens: str) -> dict[str, Any]:
    _, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    return {name: value for name, value in bound.arguments.items() if name != "config"}


def example() -> str:
    [text] = re.findall(r"^```toml\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    assert isinstance(text, str)
    return text


def test_the_command_line_overrides_a_variable_which_overrides_the_file(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write('[serve]\nidle-timeout = "1s"\nlinger = "1s"\nbacklog = 1\n')
    monkeypatch.setenv("ANYECHO_IDLE_TIMEOUT", "2s")
    monkeypatch.setenv("ANYECHO_LINGER", "2s")

    assert parse("serve", "--config", name, "--idle-timeout", "3s") == {
        "idle_timeout": 3.0,
        "linger": 2.0,
        "backlog": 1,
    }
    assert ENVIRONMENT.used == ("linger",)
    assert ENVIRONMENT.in_file == {"backlog": "backlog in echo.toml"}


def test_a_variable_can_name_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYECHO_CONFIG", write("[serve]\nbacklog = 1\n"))

    assert parse("serve") == {"backlog": 1}


def test_without_the_flag_no_file_is_read(write: Write) -> None:
    write("[serve]\nbacklog = 1\n")

    assert parse("serve") == {}
    assert ENVIRONMENT.in_file == {}


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ('idle-timeout = "off"', {"idle_timeout": None}),
        ("idle-timeout = 1.5", {"idle_timeout": 1.5}),
        ('max-bytes = "64KiB"', {"max_bytes": 65536}),
        ("max-connections = 20_000", {"max_connections": 20000}),
        ("keepalive = false", {"keepalive": False}),
        ("access-log = true", {"access_log": True}),
        ('access-log = "all"', {"access_log": "all"}),
        ('engine = "tasks"', {"engine": "tasks"}),
        ('bind = "a:1"', {"bind": ("a:1",)}),
        ('bind = ["a:1", "unix:/x?mode=600"]', {"bind": ("a:1", "unix:/x?mode=600")}),
        ('fault = ["latency:latency=1ms,jitter=1ms", "cut:bytes=1"]', None),
        ('ssl-certfile = "a.pem"', {"ssl_certfile": Path("a.pem")}),
        ("seed = 3", {"seed": 3}),
        ("workers = 4", {"workers": "4"}),
        ("admin = 9100", {"admin": "9100"}),
    ],
)
def test_a_value_is_what_its_flag_makes_of_it(write: Write, line: str, values: dict[str, Any] | None) -> None:
    expected = values or {"fault": ("latency:latency=1ms,jitter=1ms", "cut:bytes=1")}
    assert parse("serve", "--config", write(f"[serve]\n{line}\n")) == expected


def test_each_verb_has_a_table_of_its_own(write: Write) -> None:
    name = write(
        '[serve]\nbacklog = 1\n[send]\naddress = "a:1"\nipv4 = true\n[ping]\naddress = "a:2"\ncount = 3\n'
        '[bench]\nconnections = [1, 10]\nrate = "off"\npercentiles = [50, 99.9]\n[report]\nfail-if = ["lost>0"]\n'
    )

    assert parse("send", "--config", name) == {"address": "a:1", "ipv4": True}
    assert parse("ping", "--config", name, "a:3") == {"address": "a:3", "count": 3}
    assert parse("bench", "--config", name) == {"connections": (1, 10), "rate": (None,), "percentiles": (50, 99.9)}
    assert parse("report", "--config", name) == {"fail_if": ("lost>0",)}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[serve", "echo.toml is not TOML: Expected ']' at the end of a table declaration (at end of document)"),
        ("serve = 3", "serve in echo.toml must be a table, as [serve] begins it, not 3"),
        ("[sevre]", "unknown key sevre in echo.toml: did you mean serve?"),
        ("backlog = 3", "unknown key backlog in echo.toml: the tables are one for each verb"),
        ("[serve]\nidle-timeot = 1", "unknown key idle-timeot in echo.toml: did you mean idle-timeout?"),
        ("[serve]\nidle_timeout = 1", "unknown key idle_timeout in echo.toml: did you mean idle-timeout?"),
        ("[serve]\nno-keepalive = true", "unknown key no-keepalive in echo.toml: did you mean keepalive?"),
        ("[serve]\nzzz = 1", "unknown key zzz in echo.toml: see anyecho serve --help"),
        ("[serve]\nconfig = 'x'", "unknown key config in echo.toml: see anyecho serve --help"),
        ("[serve]\nlifeline = 3", "unknown key lifeline in echo.toml: see anyecho serve --help"),
        ("[serve]\nssl-certfile = 7", "ssl-certfile in echo.toml must be a string, not 7"),
        ("[serve]\nbind = [7000]", "bind in echo.toml must be a string, not 7000"),
        ("[serve]\nworkers = 1.5", "workers in echo.toml must be a string, not 1.5"),
        ("[serve]\nworkers = true", "workers in echo.toml must be a string, not True"),
        ("[serve]\nbackend = 3", "backend in echo.toml must be a string, not 3"),
        ("[serve]\nkeepalive = 'on'", "keepalive in echo.toml must be true or false, not 'on'"),
        ("[serve]\nbacklog = [1]", "backlog in echo.toml must be a number or a string, not [1]"),
        ("[serve]\nbacklog = true", "backlog in echo.toml must be a number or a string, not True"),
        ("[serve]\nlinger = {a = 1}", "linger in echo.toml must be a number or a string, not {'a': 1}"),
        ("[serve]\nidle-timeout = 2026-01-31", None),
        ("[serve]\nbacklog = 1.5", "Invalid value for backlog in echo.toml: '1.5' is not a whole number"),
        (
            "[serve]\nidle-timeout = 'soon'",
            "Invalid value for idle-timeout in echo.toml: 'soon' is not a duration: write like 250ms, 1.5s or 2m "
            "(off is no limit)",
        ),
        (
            "[serve]\nbackend = 'x'",
            'Invalid value "x" for backend in echo.toml. Choose from: "asyncio", "uvloop", "trio".',
        ),
        ("[serve]\nmax-connections = 0", "max-connections in echo.toml must be 1 or more, not 0"),
        (
            "[serve]\nbind = '7'",
            "bind in echo.toml: bad address '7': a port needs its host: localhost:7, or :7 for every interface",
        ),
        ("[serve]\nfault = 'cut'", "fault in echo.toml: cut: give seconds or bytes"),
        (
            "[serve]\nhandler = 'discrd'",
            "handler in echo.toml 'discrd': no such name (did you mean discard?); there are echo, discard, "
            "chargen, upper, prefix, and module:function",
        ),
        (
            "[serve]\nbind = '127.0.0.1:0'\nssl-certfile = 'x.pem'",
            "ssl-certfile in echo.toml has no effect: no address is for TLS: write tls://127.0.0.1:0",
        ),
    ],
)
def test_a_wrong_file_key_or_value_is_one_line_with_both(
    write: Write, text: str, line: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--config", write(text)]) == 2
    output, errors = capfd.readouterr()

    date = "idle-timeout in echo.toml must be a number or a string, not datetime.date(2026, 1, 31)"
    assert (output, errors) == ("", f"anyecho: {line or date}\n")


def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    denied = tmp_path / "denied"
    denied.touch(mode=0)
    expected = {
        "absent": "anyecho: cannot read absent: No such file or directory\n",
        ".": "anyecho: cannot read .: Is a directory\n",
        "binary": "anyecho: binary is not TOML: 'utf-8' codec can't decode byte 0xff in position 0: "
        "invalid start byte\n",
        "": "anyecho: Invalid value for --config: it is empty: name a file\n",
    }
    if not os.access(denied, os.R_OK):  # root may read it
        expected["denied"] = "anyecho: cannot read denied: Permission denied\n"

    for name, line in expected.items():
        assert main(["serve", f"--config={name}"]) == 2
        assert capfd.readouterr().err == line


def test_an_option_without_effect_is_named_as_in_the_file(processes: Processes, write: Write) -> None:
    process = processes.serve("--config", write(f'[serve]\nbind = "{TCP}"\nudp-rate = 5\n'))
    process.signal()

    assert process.wait() == 0
    assert process.errors() == "main: without effect: udp-rate in echo.toml (no address is for UDP)\n"


def test_addresses_of_the_command_line_override_those_of_the_file(processes: Processes, write: Write) -> None:
    process = processes.serve("--config", write('[serve]\nbind = "no address"\n'), TCP)

    assert round_trip(process.addresses[0], b"hello") == b"hello"


def test_a_pipe_can_be_the_file(processes: Processes) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, f'[serve]\nbind = "{TCP}"\n'.encode())
    os.close(write_end)
    process = processes.serve("--config", "/dev/stdin", stdin=read_end)
    os.close(read_end)

    assert round_trip(process.addresses[0], b"hello") == b"hello"


def test_the_example_of_the_chapter_serves(
    processes: Processes, write: Write, short_path: Path, files: Files
) -> None:
    here = "//127.0.0.1:0"
    places = {"//:7000": here, "//127.0.0.1:7001": here, "//:7443": here, "/run/echo": str(short_path)}
    places |= {"/etc/anyecho/cert.pem": str(files.cert), "/etc/anyecho/key.pem": str(files.key)}
    text = example()
    for there, local in places.items():
        text = text.replace(there, local)
    process = processes.serve("--config", write(text), listeners=5)

    assert [each.partition(":")[0] for each in process.addresses] == ["tcp", "tcp", "tls", "unix", "udp"]
    assert (short_path / "socket").stat().st_mode & 0o777 == 0o660


@pytest.mark.parametrize("verb", ["send", "bench"])
def test_the_other_tables_of_the_example_are_accepted(verb: str, write: Write) -> None:
    assert parse(verb, "--config", write(example()))


def test_tomllib_is_imported_for_a_file_only() -> None:
    code = "import sys, anyecho.cli.main as cli; cli.main(['serve', '7']); print('tomllib' in sys.modules)"
    assert check_output([sys.executable, "-c", code], text=True, stderr=-3) == "False\n"
