"""``anyecho bench``: its figures, files, gates and exit statuses; wrong input is one line."""

from __future__ import annotations

import json
import os
import signal
import socket
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from jsonschema import Draft202012Validator

from anyecho.cli.main import main
from anyecho.cli.progress import ProgressLine
from anyecho.measure.options import BenchOptions
from anyecho.measure.progress import progress_of
from anyecho.measure.result import Document
from tests.cli.conftest import Run
from tests.measure.schema import schema_text
from tests.support.process import Process, Processes, peer, terminal, wait_until


class Stamps(NamedTuple):
    due: array[int]
    received: array[int]


QUICK = ("-n", "100", "--warmup", "0", "-c", "2")


def swallow_tenth(sock: socket.socket) -> None:
    """Echo nine messages of 64 bytes, and close; a script for `peer`."""
    for _ in range(9):
        sock.sendall(sock.recv(64, socket.MSG_WAITALL))
    sock.recv(64, socket.MSG_WAITALL)


def corrupt_tenth(sock: socket.socket) -> None:
    """Echo ten messages of 64 bytes, the last one with a wrong byte; a script for `peer`."""
    for number in range(10):
        message = bytearray(sock.recv(64, socket.MSG_WAITALL))
        if number == 9:
            message[3] ^= 255
        sock.sendall(message)
    sock.recv(1)


@pytest.mark.by_turns("address")
def test_a_closed_loop_prints_latency_and_the_checks(run: Run, address: str, backend: str) -> None:
    status, output, errors = run("bench", address, *QUICK, "--backend", backend)
    lines = output.decode().splitlines()
    assert (status, errors) == (0, "")
    assert lines[0] == f"{address}, 2 connections, 64 bytes, closed loop, 100 messages"
    assert lines[2].split() == ["p50", "p90", "p99", "p99.9", "p99.99", "max", "mean"]
    # 100 messages: 10 are beyond p90, one is beyond p99.
    assert [cell == "-" for cell in lines[3].split()] == [False] * 3 + [True] * 3 + [False] * 2
    assert "  messages     100 sent: 100 verified, 0 wrong, 0 lost" in lines
    assert any(line.split()[:2] == ["generator", f"{backend},"] for line in lines)


def test_an_open_loop_prints_corrected_and_uncorrected_latency_lag_and_their_difference(
    run: Run, addresses: dict[str, str]
) -> None:
    status, output, _ = run("bench", addresses["tcp"], *QUICK, "-r", "500", "--percentiles", "50,75")
    lines = output.decode().splitlines()
    assert status == 0
    assert [line.split()[0] for line in lines[2:6]] == ["p50", "corrected", "uncorrected", "lag"]
    assert lines[2].split() == ["p50", "p75", "max", "mean"]
    assert lines[6].startswith("corrected: from the due time to the reply; uncorrected: from the send; lag: ")


@pytest.mark.parametrize("rate", [(), ("-r", "1k")])
def test_json_on_standard_output_is_pure_and_obeys_its_schema(
    rate: tuple[str, ...], run: Run, address: str
) -> None:
    status, output, errors = run("bench", address, *QUICK, *rate, "--json", "-")
    assert (status, errors) == (0, "")
    Draft202012Validator(json.loads(schema_text())).validate(json.loads(output))
    [result] = Document.from_json(output).runs
    assert result.counts.verified == 100
    assert result.load.transport == address.partition(":")[0]


@pytest.mark.parametrize(
    ("script", "outcome"), [(swallow_tenth, "0 wrong, 1 lost"), (corrupt_tenth, "1 wrong, 0 lost")]
)
def test_a_lost_or_wrong_message_is_named_with_status_1(
    script: Callable[[socket.socket], None], outcome: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with peer(script) as address:
        status = main(["bench", address, "-n", "10", "-c", "1", "--warmup", "0", "--json", str(tmp_path / "a")])
    output = capfd.readouterr().out
    assert status == 1
    assert f"10 sent: 9 verified, {outcome}" in output
    assert "message 9" in output
    assert Document.from_json((tmp_path / "a").read_text()).runs[0].counts.verified == 9


def test_a_file_that_cannot_be_written_is_a_mistake_before_the_load(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "unix:/absent", *QUICK, "--json", "/absent/a"]) == 2
    assert capfd.readouterr().err == "anyecho: cannot write /absent/a: No such file or directory\n"


@pytest.mark.parametrize(("gate", "status"), [("lost>0", 0), ("p50<1h", 99), ("wrong>0.1%", 0)])
def test_a_gate_that_holds_is_status_99(
    gate: str, status: int, addresses: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", addresses["tcp"], *QUICK, "--fail-if", gate]) == status
    assert capfd.readouterr().err.count("\n") == (status == 99)


@pytest.mark.by_turns("bind", "rate")
@pytest.mark.parametrize(
    ("bind", "rate"),
    [("tcp://127.0.0.1:0", ()), ("udp://127.0.0.1:0", ("-r", "2k")), ("unix:{path}/echo", ("-r", "2k"))],
)
def test_after_ctrl_c_the_figures_so_far_are_printed_with_status_130(
    rate: tuple[str, ...], bind: str, processes: Processes, backend: str, short_path: Path, tmp_path: Path
) -> None:
    arguments = ("-d", "1h", "--warmup", "0", "-c", "2", "--json", str(tmp_path / "a"), "--backend", backend)
    server = processes.serve("-b", bind.format(path=short_path), "--unsafe-udp", "--udp-rate", "off")
    before = _cpu(server)
    process = processes.start("bench", server.addresses[0], *arguments, *rate)
    # Accepting two connections takes less than a tenth of a second; the rest is echoes.
    wait_until(lambda: _cpu(server) > before + 10)
    process.signal(signal.SIGINT)
    output, errors = process.popen.communicate(timeout=20)
    assert (process.popen.returncode, errors) == (130, b"")
    assert b"interrupted; the figures are of a part of the run" in output
    [run] = Document.from_json((tmp_path / "a").read_text()).runs
    assert run.interrupted
    assert run.counts.verified > 0
    assert run.counts.lost == run.counts.wrong == 0


def _cpu(server: Process) -> int:
    """Return the ticks of CPU time of the server, which grow while it echoes."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.parametrize(
    ("arguments", "status", "error"),
    [
        (("localhost:1", "-r", "0"), 2, "--rate must be more than 0, not 0.0"),
        (("localhost:1", "-r", "fast"), 2, "'fast' is not a rate: write like 10k or 50/1s"),
        (("localhost:1", "-c", "0"), 2, "--connections must be 1 or more, not 0"),
        (
            ("localhost:1", "--percentiles", "101"),
            2,
            "Invalid value for --percentiles: 101 is not above 0 and below 100",
        ),
        (("localhost:1", "--percentiles", "p50"), 2, "write numbers like 50,99.9"),
        (("localhost:1", "--cpu", "one"), 2, "--cpu must be cores like 1 or 0,2-3, not 'one'"),
        (("localhost:1", "-d", "off"), 2, "--duration is off: give a number of --requests"),
        (("localhost:1", "-4", "-6"), 2, "-4 and -6 exclude each other"),
        (("udp://localhost:1", "-s", "4"), 2, "--size must be 8 to 65507 bytes over UDP, not 4"),
        (("localhost:1", "--fail-if", "p99>+5%"), 2, "--fail-if 'p99>+5%' needs a baseline"),
        (("fd://3",), 2, "cannot connect to fd://3: a descriptor is for servers"),
        (("unix:/absent/socket",), 3, "cannot connect to unix:/absent/socket: No such file or directory"),
        (("localhost:1", "--sni", "name"), 2, "--sni has no effect"),
        (("localhost:1", "--threads", "2"), 2, "unknown option --threads"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: tuple[str, ...], status: int, error: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == status
    output, errors = capfd.readouterr()
    assert output == ""
    assert errors.count("\n") == 1
    assert error in errors


@pytest.mark.parametrize(
    "options", [BenchOptions(duration=4.0, warmup=1.0), BenchOptions(requests=50)], ids=["duration", "requests"]
)
def test_a_terminal_shows_rate_and_p99_once_a_second_and_nothing_at_the_end(options: BenchOptions) -> None:
    second = 1_000_000_000
    now = 5 * second
    written: list[str] = []
    connection = Stamps(due=array("q"), received=array("q"))
    progress = ProgressLine(lambda: now, written.append)
    progress.begin(options)
    for step in range(1, 21):
        now = 5 * second + step * second // 10
        connection.due.append(now - 3_000_000)
        connection.received.append(now)
        progress.update(partial(progress_of, [connection]))
    progress.end()

    assert written == [
        "\r\x1b[K[####                ]  20%  10.0 msg/s  p99 3.00ms",
        "\r\x1b[K[########            ]  40%  10.0 msg/s  p99 3.00ms",
        "\r\x1b[K",
    ]


def test_the_progress_line_is_shown_on_a_terminal(processes: Processes, addresses: dict[str, str]) -> None:
    with terminal() as (keyboard, screen):
        process = processes.start("bench", addresses["tcp"], "-r", "100", "-d", "2", "--warmup", "0", stderr=screen)
        text = b""
        while b"msg/s" not in text:
            text += os.read(keyboard, 4096)
        assert process.wait() == 0


def test_the_other_verbs_import_no_histogram(processes: Processes) -> None:
    names = "sorted({'hdrh', 'anyecho.measure.bench'} & {*sys.modules})"
    check = f"import atexit, sys; atexit.register(lambda: print(*{names}));"
    status, output, _ = processes.run("send", "unix:/absent", before=check)
    assert (status, output.strip()) == (3, b"")
