"""Environment variables: the flags that they set, and unknown ones that are ignored or named in a warning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from cyclopts import CycloptsError

from anyecho.cli.environment import ENVIRONMENT
from anyecho.cli.main import app, main
from tests.support.process import Processes

TCP = "tcp://127.0.0.1:0"
#: A port on which nothing listens; `send` to it is over at once.
REFUSED = ("send", "tcp://127.0.0.1:1", "hello")


def parse(*tokens: str) -> dict[str, Any]:
    _, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    return bound.arguments


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_variable_counts_as_unset(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IDLE_TIMEOUT", "BIND", "ACCESS_LOG", "BACKEND", "SSL_CERTFILE", "MAX_BYTES", "NO_SUCH_OPTION"):
        monkeypatch.setenv(f"ANYECHO_{name}", empty)

    assert parse("serve") == {}
    assert ENVIRONMENT.used == ()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("on", True), ("ON", True), ("yes", True), ("true", True), ("1", True)),
        *(("off", False), ("Off", False), ("no", False), ("false", False), ("0", False)),
    ],
)
def test_a_switch_accepts_several_words_for_on_and_off(
    text: str, value: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYECHO_ACCESS_LOG", text)
    monkeypatch.setenv("ANYECHO_KEEPALIVE", text)

    assert parse("serve") == {"access_log": value, "keepalive": value}


def test_a_switch_may_have_a_value_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYECHO_ACCESS_LOG", "all")

    assert parse("serve") == {"access_log": "all"}
    assert parse("serve", "--no-access-log") == {"access_log": False}


def test_an_invalid_switch_value_lists_the_valid_words(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYECHO_ACCESS_LOG", "maybe")

    assert main(["serve"]) == 2
    line = (
        "anyecho: Invalid value for ANYECHO_ACCESS_LOG: 'maybe' is not all, on, off, yes, no, true, false, 1 or 0\n"
    )
    assert capfd.readouterr().err == line


@pytest.mark.parametrize("text", ["a:1,b:2", "a:1 b:2", "a:1, b:2", " a:1 ,\nb:2,"])
def test_spaces_or_commas_separate_several_values(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYECHO_BIND", text)

    assert parse("serve") == {"bind": ("a:1", "b:2")}


@pytest.mark.parametrize("text", [",", " , ", ",\n,"])
def test_several_values_that_are_all_empty_count_as_unset(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYECHO_BIND", text)

    assert parse("serve") == {}


def test_a_variable_for_the_negative_of_a_switch_does_not_turn_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYECHO_NO_KEEPALIVE", "1")

    assert parse("serve") == {}


def test_options_set_by_a_variable_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYECHO_IDLE_TIMEOUT", "7s")
    monkeypatch.setenv("ANYECHO_LINGER", "1s")
    parse("serve", "--linger", "3s")

    assert ENVIRONMENT.used == ("idle_timeout",)


def warnings_of(processes: Processes, **variables: str) -> str:
    environ = {"PATH": "/usr/bin:/bin", "PYTHONWARNINGS": "error"} | variables
    status, _, errors = processes.run(*REFUSED, env=environ)

    assert status == 3
    *warnings, refusal = errors.splitlines()
    assert "Connection refused" in refusal
    return "\n".join(warnings)


def test_unknown_variables_are_one_warning_with_the_nearest_name(processes: Processes) -> None:
    assert warnings_of(processes, ANYECHO_IDLE_TIMEOT="3", ANYECHO_FOO="1", ANYECHO_NO_KEEPALIVE="1") == (
        "echo_client: unknown variables are ignored: ANYECHO_FOO, "
        "ANYECHO_IDLE_TIMEOT (did you mean ANYECHO_IDLE_TIMEOUT?), "
        "ANYECHO_NO_KEEPALIVE (did you mean ANYECHO_KEEPALIVE?)"
    )


def test_variables_of_another_verb_and_of_kubernetes_are_ignored(processes: Processes) -> None:
    injected = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "7000",
        "SERVICE_PORT_ECHO": "7000",
        "PORT": "tcp://10.0.0.1:7000",
        "PORT_7000_TCP": "tcp://10.0.0.1:7000",
        "PORT_7000_TCP_PROTO": "tcp",
        "UDP_SERVICE_HOST": "10.0.0.2",
        "UDP_PORT_7000_UDP_ADDR": "10.0.0.2",
    }
    other = {"BIND": ":7000", "IDLE_TIMEOUT": "5m", "SSL_CERTFILE": "/absent"}

    assert warnings_of(processes, **{f"ANYECHO_{name}": text for name, text in (injected | other).items()}) == ""


def test_addresses_of_the_command_line_override_the_variable(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, short_path: Path
) -> None:
    monkeypatch.setenv("ANYECHO_BIND", f"unix:{short_path}/echo")
    process = processes.serve(TCP)

    assert process.addresses[0].startswith("tcp://127.0.0.1:")
    assert not (short_path / "echo").exists()


def test_tls_variables_without_effect_are_a_warning(processes: Processes) -> None:
    warning = warnings_of(processes, ANYECHO_CACERT="/absent", ANYECHO_SNI="example.org")

    reason = "tcp://127.0.0.1:1 is not over TLS: write tls://127.0.0.1:1"
    assert warning == f"echo_client: without effect: ANYECHO_CACERT, ANYECHO_SNI ({reason})"


def test_an_access_log_without_effect_is_named_by_its_variable(processes: Processes) -> None:
    process = processes.serve("udp://127.0.0.1:0", env=os.environ | {"ANYECHO_ACCESS_LOG": "on"})
    process.signal()

    assert process.wait() == 0
    line = "warning main: without effect: ANYECHO_ACCESS_LOG (every address is for UDP)\n"
    assert process.errors().partition(" ")[2] == line


def test_an_error_names_an_option_by_the_variable_that_set_it(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYECHO_IDLE_TIMEOUT", "0")

    assert main(["serve"]) == 2
    assert capfd.readouterr().err.startswith("anyecho: ANYECHO_IDLE_TIMEOUT must be more than 0")


def test_a_message_does_not_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYECHO_MESSAGES", "boo")
    monkeypatch.setenv("ANYECHO_ADDRESSES", "boo")

    assert parse("send", "x:1") == {"address": "x:1"}
    assert parse("serve") == {}
    with pytest.raises(CycloptsError):
        parse("send")
