"""An invalid command line is exit status 2 and one line with a suggestion."""

from __future__ import annotations

import re

import pytest

from anyecho.cli.main import main
from tests.support.process import Processes, round_trip

TCP = "tcp://127.0.0.1:0"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("serve --port 7000", "unknown option --port: a port is part of the address: anyecho serve :7000"),
        ("serve --port=7000", "unknown option --port: a port is part of the address: anyecho serve :7000"),
        ("serve -p 7000", "unknown option -p: a port is part of the address: anyecho serve :7000"),
        ("send --port 7000 hello", "unknown option --port: a port is part of the address: anyecho send HOST:7000"),
        ("serve --host ::1", "unknown option --host: give the address: anyecho serve HOST:PORT (or -b HOST:PORT)"),
        ("serve --tls", "unknown option --tls: write tls://HOST:PORT, with --ssl-certfile"),
        ("serve --cert c.pem", "unknown option --cert: did you mean --ssl-certfile?"),
        ("send x:1 --cafile ca.pem", "unknown option --cafile: did you mean --cacert?"),
        ("send x:1 --udp", "unknown option --udp: write udp://HOST:PORT"),
        ("serve --verbose", "unknown option --verbose: did you mean --log-level info?"),
        ("serve --idle-timout 4", "unknown option --idle-timout: did you mean --idle-timeout?"),
        ("serve --zzz", "unknown option --zzz: see anyecho serve --help"),
        (
            "serve --keepalive=on",
            "Invalid value for --keepalive: 'on' is not yes, no, true, false, 1 or 0, or nothing",
        ),
        (":7000", "':7000' is no command: write anyecho serve :7000, or anyecho send :7000 MESSAGE"),
        ("serve 7000", "bad address '7000': a port needs its host: localhost:7000, or :7000 for every interface"),
        ("serve -b /run/x.sock", "bad address '/run/x.sock': a Unix socket is written unix:/run/x.sock"),
        ("serve ./x.sock", "bad address './x.sock': a Unix socket is written unix:./x.sock"),
        ("send @echo hello", "bad address '@echo': a Unix socket is written unix:@echo"),
        ("serve tcp:localhost:7", "bad address 'tcp:localhost:7': the // is missing: tcp://localhost:7"),
        ("serve :1,:2", "bad address ':1,:2': a comma does not separate addresses: give each one on its own"),
        ("bench x:1 y:1", "unexpected argument 'y:1'"),
        (
            "send insecure:1 --cert c.pem hello",
            "--cert has no effect: tcp://insecure:1 is not over TLS: write tls://insecure:1",
        ),
        ("send fd://3 hello", "cannot connect to fd://3: a descriptor is for servers"),
    ],
)
def test_an_invalid_argument_gets_a_suggestion(
    arguments: str, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    assert capfd.readouterr() == ("", f"anyecho: {line}\n")


def test_a_setting_of_an_address_is_not_renamed_to_a_flag(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["send", "127.0.0.1:1?proxy=v2", "hello"]) == 3
    reason = "it is for servers: a client sends a header with --proxy-header"
    assert capfd.readouterr().err.startswith(f"echo_client: without effect: ?proxy= ({reason})\n")


@pytest.mark.parametrize("flag", ["--idle-timeout", "--rate-limit", "--udp-rate"])
@pytest.mark.parametrize("word", ["never", "none", "infinite"])
def test_an_invalid_limit_gets_the_hint_off(flag: str, word: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", flag, word]) == 2
    assert re.fullmatch(rf"anyecho: .*{flag}: '{word}' .*\(off is no limit\)\n", capfd.readouterr().err)


def test_addresses_are_accepted_without_bind_and_beside_it(processes: Processes) -> None:
    process = processes.serve(TCP, "udp://127.0.0.1:0", "-b", TCP, listeners=3)

    assert [address.partition(":")[0] for address in process.addresses] == ["tcp", "udp", "tcp"]
    assert round_trip(process.addresses[0], b"hello") == b"hello"
