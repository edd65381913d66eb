"""Each flag is generated from one field of an options dataclass."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from inspect import signature
from typing import Any, get_type_hints

import pytest
from cyclopts import CycloptsError

from anyecho.cli.flags import explicit, flattened
from anyecho.cli.logs import LogOptions
from anyecho.cli.main import app, main
from anyecho.cli.output_options import OutputOptions
from anyecho.client.options import ConnectOptions
from anyecho.measure.options import BenchOptions
from anyecho.measure.ping_options import PingOptions
from anyecho.measure.series_options import OwnServerOptions, SeriesOptions
from anyecho.measure.shard_options import ShardOptions
from anyecho.net.sockets import SocketOptions
from anyecho.net.tls.contexts import TLSClientOptions, TLSServerOptions
from anyecho.options import FilePath
from anyecho.server.options import ServeOptions
from anyecho.server.worker_options import WorkerOptions
from anyecho.units import Seconds, Size

#: Parameters of each verb besides the options.
OWN_FLAGS = {
    "serve": {
        "--bind",
        "--backend",
        "--access-log",
        "--admin",
        "--control",
        "--handler",
        "--forward",
        "--fault",
        "--seed",
    },
    "send": {"--file", "--repeat", "-4", "-6", "--backend"},
    "ping": {"--quiet", "--timestamps", "--json", "-4", "-6", "--backend"},
    "bench": {"-4", "-6", "--backend"},
    "report": {"--merge", "--join", "--percentiles", "--schema"},
}
OPTIONS = {
    "serve": (ServeOptions, LogOptions, WorkerOptions),
    "send": (ConnectOptions, LogOptions),
    "ping": (PingOptions, LogOptions),
    "bench": (SeriesOptions, BenchOptions, OwnServerOptions, ShardOptions, OutputOptions, LogOptions),
    "report": (OutputOptions,),
}


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: Size = field(default=1024, metadata={"help": "How deep."})


@dataclass(frozen=True, kw_only=True)
class Outer:
    wait: Seconds = field(default=1.5, metadata={"help": "How long."})
    secret: str = "not a flag"
    inner: Inner = field(default_factory=Inner)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def described(options: Any) -> Iterator[tuple[str, str]]:
    """Return name and help of every field with help, nested options included."""
    hints = get_type_hints(options)
    for each in fields(options):
        if is_dataclass(hints[each.name]):
            yield from described(hints[each.name])
        elif "help" in each.metadata:
            yield each.name, each.metadata["help"]


def parse(*tokens: str) -> dict[str, Any]:
    """Return the arguments with which the command in `tokens` would be called."""
    _, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    return bound.arguments


@pytest.fixture
def help_of(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Return the help page of a verb, on a terminal so wide that no line wraps."""
    monkeypatch.setenv("COLUMNS", "300")

    def page(verb: str) -> str:
        assert main([verb, "--help"]) == 0
        output, errors = capfd.readouterr()
        assert not errors
        return output

    return page


@pytest.fixture(params=list(OPTIONS))
def verb(request: pytest.FixtureRequest) -> str:
    word: str = request.param
    return word


def test_every_field_with_help_is_a_flag(verb: str, help_of: Callable[[str], str]) -> None:
    page = help_of(verb)

    for options in OPTIONS[verb]:
        for name, text in described(options):
            assert re.search(rf"{flag(name)} .*{re.escape(text)}", page), name


def test_flags_are_unique_and_come_from_options_only(verb: str, help_of: Callable[[str], str]) -> None:
    described_ones = {flag(name) for options in OPTIONS[verb] for name, _ in described(options)}
    expected = described_ones | OWN_FLAGS[verb] | {"--config"}
    # The first word of each row of the table.
    listed = re.findall(r"^│ (-\S+)", help_of(verb), re.M)

    assert sorted(listed) == sorted(expected)


@pytest.mark.parametrize("verb", ["serve", "send", "ping", "bench"])
def test_socket_options_are_flags_of_each_verb_with_a_socket(verb: str, help_of: Callable[[str], str]) -> None:
    page = help_of(verb)

    assert all(f"{flag(name)} " in page for name, _ in described(SocketOptions))


def test_every_server_socket_and_tls_option_has_help() -> None:
    hints = get_type_hints(ServeOptions) | get_type_hints(SocketOptions) | get_type_hints(TLSServerOptions)
    plain = {name for name, hint in hints.items() if not is_dataclass(hint)}

    # A flag cannot hold a Python object; the command line sets `from_environment` itself.
    assert {name for name, _ in described(ServeOptions)} == plain - {
        "authority",
        "context",
        "from_environment",
        "faults",
        "processes",
        "shared_row",
        "seed",
    }


def test_every_default_is_shown_once(verb: str, help_of: Callable[[str], str]) -> None:
    page = help_of(verb)

    for options in OPTIONS[verb]:
        groups = (options, TLSServerOptions, TLSClientOptions)
        # None is "off", except for files, for names of TLS, and for other text.
        empty = {
            each.name
            for group in groups
            for each in fields(group)
            if each.default == ()
            or each.metadata.get("show_default") is False
            or (
                each.default is None
                and (group is not options or get_type_hints(group)[each.name] in (FilePath | None, str | None))
            )
        }
        for name, _ in described(options):
            [row] = re.findall(rf"^│ {flag(name)} .*", page, re.M)
            assert row.count("[default: ") == (name not in empty), row


@pytest.mark.parametrize(
    ("name", "metavar", "default"),
    [("--idle-timeout", "DURATION", "10m"), ("--linger", "DURATION", "2s"), ("--sndbuf", "SIZE", "off")],
)
def test_a_default_is_shown_in_its_unit(
    help_of: Callable[[str], str], name: str, metavar: str, default: str
) -> None:
    assert re.search(rf"{name} {metavar} .*\[default: {default}\]", help_of("serve"))


def test_no_limit_is_shown_as_off(help_of: Callable[[str], str]) -> None:
    assert re.search(r"--deadline DURATION .*\[default: off\]", help_of("send"))


def test_every_page_says_how_a_variable_sets_a_flag(verb: str, help_of: Callable[[str], str]) -> None:
    assert "ANYECHO_LOG_LEVEL=info is --log-level info" in help_of(verb)


def test_a_flattened_command_takes_a_flag_per_field() -> None:
    def command(name: str, *, options: Outer) -> str:
        """What it does."""
        raise NotImplementedError

    flat = flattened(command)

    assert list(signature(flat).parameters) == ["name", "wait", "depth"]
    assert (flat.__name__, flat.__doc__) == ("command", "What it does.")


def test_a_flattened_command_gets_its_nested_options_back() -> None:
    def command(name: str, *, options: Outer) -> tuple[str, Outer]:
        return name, options

    given: Any = {"wait": 3.0, "depth": 7}

    assert flattened(command)("x", **given) == ("x", Outer(wait=3.0, inner=Inner(depth=7)))


def test_an_omitted_flag_keeps_the_default_of_its_field() -> None:
    def command(*, options: Outer) -> Outer:
        return options

    given: Any = {"depth": 7}

    assert flattened(command)() == Outer()
    assert flattened(command)(**given) == Outer(inner=Inner(depth=7))


def test_two_options_dataclasses_receive_their_own_fields() -> None:
    def command(*, options: Outer, log: LogOptions) -> tuple[Outer, LogOptions]:
        return options, log

    given: Any = {"wait": 2.0, "log_level": "debug"}

    assert flattened(command)(**given) == (Outer(wait=2.0), LogOptions(log_level="debug"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("1.5s", 1.5), ("2m", 120.0), ("3", 3.0), ("off", None)]
)
def test_durations_are_read_with_their_unit(text: str, seconds: float | None) -> None:
    assert parse("serve", "--idle-timeout", text) == {"idle_timeout": seconds}


@pytest.mark.parametrize("text", ["1.5", "1e3", "many", ""])
def test_a_fractional_number_is_rejected_not_rounded(text: str) -> None:
    with pytest.raises(CycloptsError, match=r"--max-connections: .* is not a whole number"):
        parse("serve", f"--max-connections={text}")


@pytest.mark.parametrize("arguments", ["serve --ssl-certfile=", "send x:1 --file=", "send x:1 --cacert="])
def test_an_empty_file_name_is_rejected(arguments: str) -> None:
    with pytest.raises(CycloptsError, match=r"--.*: it is empty: name a file"):
        parse(*arguments.split())


@pytest.mark.parametrize(("text", "size"), [("64", 64), ("1k", 1000), ("64KiB", 65536)])
def test_sizes_are_read_with_their_unit(text: str, size: int) -> None:
    assert parse("serve", "--sndbuf", text) == {"sndbuf": size}


def test_an_invalid_duration_names_the_flag_and_the_syntax() -> None:
    with pytest.raises(CycloptsError) as caught:
        parse("serve", "--idle-timeout", "soon")

    assert re.search("--idle-timeout.*'soon' is not a duration.*250ms", str(caught.value))


def test_bind_is_repeatable_by_either_name() -> None:
    assert parse("serve", "--bind", "a:1", "-b", "b:2") == {"bind": ("a:1", "b:2")}


def test_an_environment_variable_sets_a_flag_and_the_command_line_overrides_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANYECHO_IDLE_TIMEOUT", "7s")
    monkeypatch.setenv("ANYECHO_ACCESS_LOG", "true")

    assert parse("serve") == {"idle_timeout": 7.0, "access_log": True}
    assert parse("serve", "--idle-timeout", "1m") == {"idle_timeout": 60.0, "access_log": True}


def test_an_environment_variable_can_name_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYECHO_BIND", "tcp://127.0.0.1:1 unix:/x")

    assert parse("serve") == {"bind": ("tcp://127.0.0.1:1", "unix:/x")}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("serve --access-log :7000", "serve --access-log=yes :7000"),
        ("serve --access-log=all :7000", "serve --access-log=all :7000"),
        ("send x:1 -- --access-log", "send x:1 -- --access-log"),
    ],
)
def test_the_word_after_a_switch_is_not_its_value(words: str, expected: str) -> None:
    assert explicit(words.split()) == expected.split()


def test_a_message_may_look_like_a_flag_after_two_dashes() -> None:
    _, bound, _ = app.parse_args(["send", "a:1", "--", "-4", "--file"], exit_on_error=False, print_error=False)

    assert bound.args == ("a:1", "-4", "--file")
