"""The verb report: files are printed, merged, compared, gated and written; every failure is one line."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from anyecho.cli.main import main
from anyecho.cli.results import write_file
from anyecho.errors import LocalError
from anyecho.measure.result import Document, RunResult
from tests.measure.results import document, load, result
from tests.measure.schema import schema_text
from tests.support.process import Processes, unwritable

RUN = result()


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a document with these runs to a file in the current directory; return its name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, *runs: RunResult) -> str:
        Path(name).write_text(document(*runs).to_json())
        return name

    return write


def repeated(cost: float, count: int = 5) -> list[RunResult]:
    return [
        replace(RUN, server_cpu_per_echo=cost * (1 + index / 1000), load=load(seed=index)) for index in range(count)
    ]


def test_a_file_is_printed(save: Callable[..., str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["report", save("a.json")]) == 0
    output, errors = capfd.readouterr()
    assert output.splitlines()[0] == "tcp://127.0.0.1:10000, 2 connections, 64 bytes, 1k/s, 3s"
    assert "  messages     3000 sent: 3000 verified, 0 wrong, 0 lost\n" in output
    assert errors == ""


def test_the_percentiles_are_those_asked_for(save: Callable[..., str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--percentiles", "10,75.5", save("a.json")]) == 0
    assert capfd.readouterr().out.splitlines()[2].split() == ["p10", "p75.5", "max", "mean"]


def test_standard_input_is_a_file(processes: Processes) -> None:
    status, output, _ = processes.run("report", "-", "--json", "-", stdin=document().to_json().encode())
    assert (status, Document.from_json(output)) == (0, document())


def test_a_closed_standard_input_is_one_line(processes: Processes) -> None:
    process = processes.start("report", "-", closed=[0])
    assert process.errors() == "anyecho: cannot read -: Bad file descriptor\n"
    assert process.wait() == 2


def test_json_on_standard_output_is_pure(save: Callable[..., str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["report", save("a.json"), "--json", "-"]) == 0
    assert Document.from_json(capfd.readouterr().out) == document()


def test_merged_files_are_one_run(save: Callable[..., str], capfd: pytest.CaptureFixture[str]) -> None:
    names = [save(f"{index}.json", replace(RUN, load=load(shard_index=index, shard_count=2))) for index in range(2)]
    assert main(["report", "--merge", *names, "--json", "m.json"]) == 0
    assert "  messages     6000 sent" in capfd.readouterr().out
    [run] = Document.from_json(Path("m.json").read_bytes()).runs
    assert (run.load.connections, run.latency.count) == (4, 6000)


def test_joined_files_are_repetitions(save: Callable[..., str], capfd: pytest.CaptureFixture[str]) -> None:
    names = [save(f"{number}.json", run) for number, run in enumerate(repeated(20e-6))]
    assert main(["report", "--join", *names, "--json", "j.json", "--fail-if", "cpu>20.1us"]) == 0
    assert capfd.readouterr().out.splitlines()[3].split()[:3] == ["median", "5", "1000"]
    assert len(Document.from_json(Path("j.json").read_bytes()).runs) == 5


def test_files_are_compared_with_the_first(save: Callable[..., str], capfd: pytest.CaptureFixture[str]) -> None:
    names = [save(f"{number}.json", *repeated(cost)) for number, cost in enumerate((20e-6, 25e-6, 20e-6))]
    assert main(["report", *names]) == 0
    output = capfd.readouterr().out
    assert [line[:16] for line in output.splitlines() if line.startswith(("baseline:", "changed:"))] == [
        *("baseline: 0.json", "changed: 1.json:") * 1,
        *("baseline: 0.json", "changed: 2.json:"),
    ]
    assert [line.split()[-1] for line in output.splitlines() if line.startswith("cpu")] == ["higher", "found"]


def test_servers_of_the_same_rounds_in_one_file_are_compared(
    save: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    runs = [
        replace(run, round=number, load=load(server_engine=engine))
        for engine, cost in (("tasks", 20e-6), ("events", 10e-6))
        for number, run in enumerate(repeated(cost, 8))
    ]
    assert main(["report", save("matrix.json", *runs)]) == 0
    output = capfd.readouterr().out
    assert "ratio to tasks engine: by pairs of the same round" in output
    assert main(["report", save("sweep.json", RUN, replace(RUN, load=load(size=1024)))]) == 0
    assert "ratio to" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("conditions", "lines"),
    [
        (["p99>5ms", "lost>0"], []),
        (["p99>5ms", "p50>50us"], ["a.json: p50>50us: p50 is 100us"]),
        (["max>1ms", "rate<1M"], ["a.json: max>1ms: max is 30.0ms", "a.json: rate<1M: rate is 1000/s"]),
    ],
)
def test_a_condition_that_holds_is_exit_99_and_one_line(
    save: Callable[..., str], capfd: pytest.CaptureFixture[str], conditions: list[str], lines: list[str]
) -> None:
    flags = [word for each in conditions for word in ("--fail-if", each)]
    assert main(["report", *flags, save("a.json")]) == (99 if lines else 0)
    output, errors = capfd.readouterr()
    assert "verified" in output
    assert errors == "".join(f"anyecho: failed: {line}\n" for line in lines)


def test_a_condition_against_the_baseline_is_about_the_later_files(
    save: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    names = [save("a.json", *repeated(20e-6)), save("b.json", *repeated(25e-6))]
    assert main(["report", *names, "--fail-if", "cpu>+5%"]) == 99
    assert capfd.readouterr().err.startswith("anyecho: failed: b.json: cpu>+5%: cpu changed by +25.0% (+24.")
    assert main(["report", *names[::-1], "--fail-if", "cpu>+5%", "--fail-if", "cpu>21us"]) == 0


def test_each_file_is_judged_by_itself(save: Callable[..., str], capfd: pytest.CaptureFixture[str]) -> None:
    names = [save("a.json", RUN), save("b.json", *repeated(25e-6)), save("c.json", *repeated(20e-6, 9))]
    assert main(["report", *names, "--fail-if", "cpu>22us"]) == 99
    assert capfd.readouterr().err == "anyecho: failed: b.json: cpu>22us: cpu is 25.1us (median of 5 runs)\n"


def test_a_configuration_that_the_baseline_lacks_fails_its_conditions(
    save: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    large = [replace(run, load=load(size=1024)) for run in repeated(20e-6)]
    names = [save("a.json", *repeated(20e-6), *large), save("b.json", *large, *repeated(20e-6)[:4])]
    assert main(["report", *names, "--fail-if", "cpu>+5%"]) == 0
    names.append(save("c.json", *large, replace(RUN, load=load(size=1))))
    assert main(["report", *names, "--fail-if", "cpu>+5%"]) == 99
    output, errors = capfd.readouterr()
    assert output.endswith("\n! c.json: 1 byte: not compared: a.json has no such configuration\n")
    assert errors == "anyecho: failed: c.json: 1 byte: cpu>+5%: the baseline has no such configuration\n"


def test_a_late_generator_fails_every_condition(
    save: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    late = replace(RUN, generator=replace(RUN.generator, late=True))
    assert main(["report", save("a.json", late), "--fail-if", "p99>1h"]) == 99
    assert capfd.readouterr().err == "anyecho: failed: a.json: the generator was late\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "name a result file, as anyecho bench --json FILE writes it"),
        (["absent.json"], "cannot read absent.json: No such file or directory"),
        (["."], "cannot read .: Is a directory"),
        (["cut.json"], "cut.json is not complete JSON: it was cut or is no result (*)"),
        (["later.json"], "later.json is of version 2 of the schema, and this program reads 1 only"),
        (["absent.json", "--fail-if", "p99>slow"], "'p99>slow' is not a condition: 'slow' is not a duration: *"),
        (["a.json", "--fail-if", "p99>+5%"], "--fail-if 'p99>+5%' needs a baseline: anyecho report BASELINE FILE"),
        (["a.json", "a.json", "--json", "x"], "--json and --hdr take one result: give one file, --merge or --join"),
        (["a.json", "--merge", "--join"], "--merge and --join exclude each other"),
        (["a.json", "other.json", "--merge"], "cannot merge runs of different loads: size is 64 and 1024"),
        (["a.json", "--json", "x", "--hdr", "x"], "two outputs have the same file: x"),
        (
            ["a.json", "other.json", "--join", "--hdr", "x.hgrm"],
            "--hdr: a .hgrm file has one configuration, and there are several: write a .hlog file",
        ),
        (["a.json", "--json", "absent/x"], "cannot write absent/x: No such file or directory"),
        (["a.json", "--hdr", "a.json/x"], "cannot write a.json/x: No such file or directory"),
        (["a.json", "--html", "."], "cannot write .: Is a directory"),
        (["a.json", "--json", "--hdr"], "Invalid value for --json: the name of a file is missing before --hdr"),
        (["a.json", "--percentiles", "fast"], "Invalid value for --percentiles: write numbers like 50,99.9"),
        (["a.json", "--percentiles", "101"], "Invalid value for --percentiles: 101 is not above 0 and below 100"),
        (["a.json", "--merg"], "unknown option --merg: see anyecho report --help"),
    ],
)
def test_a_mistake_is_exit_2_and_one_line(
    save: Callable[..., str], capfd: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    save("a.json")
    save("other.json", replace(RUN, load=load(size=1024)))
    text = document().to_json()
    Path("cut.json").write_text(text[: len(text) // 2])
    Path("later.json").write_text(text.replace('"schema": 1', '"schema": 2'))
    before = {*os.listdir()}

    assert main(["report", *arguments]) == 2
    output, errors = capfd.readouterr()
    assert output == ""
    start, _, end = f"anyecho: {line}\n".partition("*")
    assert errors.startswith(start)
    assert errors.endswith(end)
    assert errors.count("\n") == 1
    assert {*os.listdir()} == before


def test_text_that_is_not_utf8_and_control_characters_are_escaped(
    save: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    name = "\udcff" + "é" * 124
    os.link(save("a.json", replace(RUN, notes=("red \x1b[31m\n\ud800",))), name)
    assert main(["report", name, "--html", name]) == 0
    assert "  note         red \\x1b[31m\\n\\ud800\n" in capfd.readouterr().out
    assert "<title>anyecho: \\udcffé" in Path(name).read_text()


def test_the_schema_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--schema"]) == 0
    output = capfd.readouterr().out
    assert output == schema_text()
    Draft202012Validator.check_schema(json.loads(output))


def test_the_hdr_file_is_a_log_or_a_distribution_by_its_name(save: Callable[..., str]) -> None:
    assert main(["report", save("a.json"), "--hdr", "a.hlog"]) == 0
    assert main(["report", "a.json", "--hdr", "a.hgrm"]) == 0
    assert [Path(name).read_text().split()[0] for name in ("a.hlog", "a.hgrm")] == ["#[anyecho:", "Value"]


@pytest.mark.parametrize(("kind", "line"), [("full", "No space left on device"), ("gone", "Broken pipe")])
def test_an_output_that_cannot_be_written_leaves_the_files_and_is_one_line(
    processes: Processes, save: Callable[..., str], kind: str, line: str
) -> None:
    end = unwritable(kind)
    process = processes.start("report", save("a.json"), "--json", "b.json", stdout=end)
    os.close(end)
    assert process.errors() == f"anyecho: cannot write to standard output: {line}\n"
    assert process.wait() == 1
    assert Document.from_json(Path("b.json").read_bytes()) == document()


def test_a_full_disk_loses_no_figure_on_the_screen(
    save: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", save("a.json"), "--json", "/dev/full", "--hdr", "a.hlog"]) == 1
    output, errors = capfd.readouterr()
    assert "3000 verified" in output
    assert errors == "anyecho: cannot write /dev/full: No space left on device\n"
    assert Path("a.hlog").exists()


def test_a_device_may_take_several_outputs(save: Callable[..., str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["report", save("a.json"), "--html", "/dev/full", "--hdr", "/dev/full"]) == 1
    assert capfd.readouterr().err == "anyecho: cannot write /dev/full: No space left on device\n"


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    path.chmod(0o640)
    # Of another process, with the same number in its container.
    other = f".anyecho.{os.getpid()}"
    (tmp_path / other).touch()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(LocalError, match=r"^cannot write .*: No space left on device$"),
    ):
        patch.setattr(Path, "replace", fail)
        write_file(path, "after")
    assert (path.read_text(), sorted(os.listdir(tmp_path))) == ("before", [other, "a.json"])

    write_file(path, "after")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("after", 0o640)
    assert sorted(os.listdir(tmp_path)) == [other, "a.json"]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    write_file(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "text"


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
