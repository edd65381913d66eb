"""The examples of README and docs/ work as written, except for ports and paths; links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from anyecho.address import parse_address
from anyecho.cli.main import app, main
from anyecho.faults import StreamFault, parse_fault
from anyecho.faults.spec import FAULTS
from anyecho.server.reasons import CloseReason
from anyecho.server.stats import Stats
from tests.support.machine import ABSENT, needs_ipv6, needs_program
from tests.support.process import TIMEOUT, Process, Processes, port_of, wait_until
from tests.test_layering import LAYERS, modules

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
#: For users: each flag in them is a flag of anyecho.
CHAPTERS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("[a-z]*.md"))]

SERVER, CLIENT = "await anyecho.serve(", 'anyecho.connect("tcp://localhost:10000")'


class Block(NamedTuple):
    where: str
    language: str
    text: str


def blocks(*languages: str, of: list[Path] = CHAPTERS) -> list[Block]:
    found = []
    for path in of:
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE):
            if match[1] in languages or not languages:
                found.append(
                    Block(f"{path.name}:{path.read_text()[: match.start()].count(chr(10)) + 1}", *match.groups())
                )

    return found


def where(block: object) -> str:
    assert isinstance(block, Block)
    return block.where


PROGRAMS = blocks("python")
TEST_SUITES = [each for each in PROGRAMS if "def test_" in each.text]
PAIR = [each for each in PROGRAMS if SERVER in each.text or CLIENT in each.text]
ALONE = [each for each in PROGRAMS if each not in (*TEST_SUITES, *PAIR)]


def run(code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def printed(block: Block) -> str:
    """Return the output that the comments after the calls of `print` state."""
    return "".join(f"{text}\n" for text in re.findall(r"print\(.*\)  # (.*)", block.text))


def commands(block: Block) -> list[list[str]]:
    """Return the arguments of each ``anyecho`` command."""
    found = []
    for line in block.text.splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for token in [*lexer, ";"]:
            if token and token[0] in "|&;<>":
                if command[:1] == ["anyecho"]:
                    found.append(command[1:])
                command = []
            else:
                command.append(token)

    return found


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert {each.language for each in blocks()} == {"console", "python", "sh", "toml", "yaml"}
    assert (len(PAIR), len(TEST_SUITES)) == (2, 6)
    assert {each.language for each in blocks(of=[*(ROOT / "docs").glob("[A-Z]*.md"), *ROOT.glob("C*.md")])} == {
        "sh",
        "text",
    }


@pytest.mark.parametrize("block", ALONE, ids=where)
def test_a_program_prints_what_its_comments_state(block: Block) -> None:
    assert run(block.text) == printed(block) != ""


def test_the_server_and_the_client_talk_to_each_other(short_path: Path, processes: Processes) -> None:
    [client], [server] = ([each for each in PAIR if marker in each.text] for marker in (CLIENT, SERVER))
    path = short_path / "echo.sock"
    code, serving = (each.text.replace("tcp://localhost:10000", f"unix:{path}") for each in (client, server))
    command = [sys.executable, "-W", "error", "-c", serving.replace("/tmp/echo.sock", f"{short_path}/other")]
    processes.adopt(Process(subprocess.Popen(command)))
    wait_until((short_path / "other").exists)
    assert run(code) == printed(client)


def test_the_examples_of_test_suites_pass(tmp_path: Path) -> None:
    files = [f"test_{re.sub(r'[.:]', '_', block.where)}.py" for block in TEST_SUITES]
    for file, block in zip(files, TEST_SUITES, strict=True):
        (tmp_path / file).write_text(block.text)
    command = [sys.executable, "-m", "pytest", "-rp", "-W", "error", "-p", "no:cacheprovider", "--rootdir", "."]
    if find_spec("pytest_asyncio"):
        command += ["-o", "asyncio_default_fixture_loop_scope=function"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout
    assert {*re.findall(r"^PASSED (\w+\.py)::", result.stdout, re.M)} == {*files}


def test_an_error_of_a_server_in_its_own_thread_propagates() -> None:
    [unittest] = [each.text for each in TEST_SUITES if "unittest" in each.text]
    code = unittest.replace("tcp://127.0.0.1:0", "unix:/nonexistent/echo")
    command = [sys.executable, "-c", f"{code}\nimport unittest\nunittest.main(argv=['example'])"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.stderr.splitlines()[-1] == "FAILED (errors=2)"
    assert "BindError: cannot listen on unix:/nonexistent/echo" in result.stderr


@needs_ipv6
@needs_program("socat")
def test_the_terminals_of_the_readme_show_what_is_printed(processes: Processes, short_path: Path) -> None:
    (serve, *printed_by_server), typed = (
        block.text.splitlines() for block in blocks("console", of=[ROOT / "README.md"])
    )
    server = processes.serve(*serve.split()[3:], "localhost:0", listeners=2)
    program = short_path / "anyecho"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m anyecho "$@"\n')
    program.chmod(0o755)

    def here(text: str) -> str:
        return text.replace(":10000", f":{server.addresses[0].rpartition(':')[2]}").replace("/tmp", str(short_path))

    output = ""
    for line in typed:
        if not line.startswith("$ "):
            assert output.startswith(line)
            output = output.removeprefix(line).removeprefix("\n")
            continue

        assert output == ""
        command = here(line[2:]).replace(" 1G ", " 1M ").removesuffix(" &")
        path = os.environ | {"PATH": f"{short_path}:{os.environ['PATH']}"}
        shell = subprocess.Popen(["sh", "-c", command], env=path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        processes.adopt(Process(shell))
        if line.endswith(" &"):
            wait_until((short_path / "changed.sock").exists)
        else:
            output = shell.communicate(timeout=TIMEOUT)[0].decode()

    def same(lines: list[str]) -> list[str]:
        return [re.sub(r"^\S+Z |_\d+ |seconds=.*", "", here(line)) for line in lines]

    assert output == ""
    log = server.read_errors(until="seconds=").splitlines()[0]
    assert same([*server.addresses, log]) == same(printed_by_server)


@needs_program("curl")
def test_the_terminal_of_the_chapter_on_control_shows_what_is_printed(processes: Processes) -> None:
    [terminal] = [block.text for block in blocks("console", of=[ROOT / "docs" / "control.md"])]
    serve, *typed = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", terminal, re.MULTILINE)
    assert serve[0] == "anyecho serve 127.0.0.1:10000 --control 8474 &"
    addresses = processes.serve("127.0.0.1:0", "--control", "127.0.0.1:0", listeners=2).addresses
    with socket.create_server(("127.0.0.1", 0)) as free:
        third = free.getsockname()[1]
    ports = {"10000": port_of(addresses[0]), "8474": port_of(addresses[1]), "20000": third}

    def here(text: str) -> str:
        return re.sub("|".join(ports), lambda found: str(ports[found[0]]), text)

    for command, shown in typed:
        ran = subprocess.run(
            ["sh", "-c", f"curl -q {here(command).removeprefix('curl')}"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert (ran.stdout.strip(), ran.returncode) == (here(shown).strip(), 0)


@needs_ipv6
def test_the_terminals_of_the_chapter_on_ping_show_what_is_printed(processes: Processes) -> None:
    """Except for the numbers."""
    chapter = [ROOT / "docs" / "ping.md"]
    [[[_, *serve]]] = [commands(block) for block in blocks("sh", of=chapter)]
    server = processes.serve(*(re.sub(":10\\d+", ":0", word) for word in serve), listeners=6)
    ports = {each.partition(":")[0]: each.rpartition(":")[2] for each in server.addresses}
    for block in blocks("console", of=chapter):
        command, _, shown = block.text.partition("\n")
        [words] = commands(block._replace(text=command))
        scheme = next((each for each in ports if words[1].startswith(each)), "tcp")
        quick = [re.sub(r":\d+$", f":{ports[scheme]}", word).replace("20ms", "1ms") for word in words]
        status, output, errors = processes.run(*quick, *([] if "-i" in quick else ["-i", "1ms"]))

        assert (status, errors) == (0, "")
        printed, stated = (re.sub(r"\d+(\.\d+)?(e-\d+)?", "N", text) for text in (output.decode(), shown))
        assert printed == stated


def test_the_terminals_of_the_chapter_on_reports_have_the_lines_that_are_printed(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their first words. Points in doubt and verdicts differ between machines."""
    monkeypatch.chdir(tmp_path)
    server = processes.serve("tcp://127.0.0.1:0")
    for block in blocks("console", of=[ROOT / "docs" / "report.md"]):
        for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE):
            [words] = commands(block._replace(text=command))
            # Fewer and shorter runs, each with the 1,000 messages that a p99 needs.
            changes = {"1k": "3k", "2s": "400ms", "30s": "400ms", "7": "4"}
            quick = [changes.get(word, word) for word in words if word != "localhost:10000"]
            if words[1] == "localhost:10000":
                quick.insert(1, server.addresses[0])
            status, output, errors = processes.run(*quick, *["--warmup", "0s"] * (words[0] == "bench"))

            assert (status, errors) == (0, "")
            printed, stated = (first_words(text) for text in (output.decode(), shown))
            assert printed == stated
    assert {each.name for each in tmp_path.iterdir()} == {
        *("monday.json", "monday.html", "before.json", "after.json", "both.html")
    }


def first_words(text: str) -> list[str]:
    """Return the first word of each line, without marks of doubt, addresses and lines that only state a doubt."""
    lines = re.sub(r"(?m)^! \S+: .*\n|^! rate  .*\n", "", text).replace("! ", "  ").splitlines()
    return [line.split()[0].partition(":")[0] for line in lines if line.strip()]


@pytest.fixture
def in_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working directory, for shells that find ``anyecho`` in PATH."""
    program = tmp_path / "bin" / "anyecho"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m anyecho "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


CLUSTER = [ROOT / "docs" / "bench-cluster.md"]


def test_shards_by_files_are_merged_as_the_chapter_shows(processes: Processes, in_shell: Path) -> None:
    [script] = [each.text for each in blocks("sh", of=CLUSTER) if "shard1.json" in each.text]
    server = processes.serve("tcp://127.0.0.1:0")
    result = subprocess.run(
        ["sh", "-ec", script.replace("localhost:10000", server.addresses[0])],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (result.returncode, result.stderr) == (0, "")
    merged = result.stdout.rpartition("tcp://")[2]
    assert "4000 sent: 4000 verified" in merged
    assert "100 connections" in merged
    assert re.search(r"^shard 2 of 2 +2000 ", merged, re.M)


def test_the_pods_of_the_kubernetes_job_are_the_shards_of_one_load(processes: Processes, in_shell: Path) -> None:
    yaml = pytest.importorskip("yaml", reason=f"{ABSENT}PyYAML")
    [text] = [each.text for each in blocks("yaml", of=CLUSTER)]
    job = yaml.safe_load(text.replace("@START@", str(int(time.time()) + 15)))["spec"]
    [container] = job["template"]["spec"]["containers"]
    [argument] = container["args"]
    server = processes.serve("tcp://127.0.0.1:0")
    script = argument.replace("tcp://echo:10000", server.addresses[0]).replace("-r 40k -d 30", "-r 400 -d 1")
    script = re.sub("pip install .*&&", "", script)
    environment = os.environ | {each["name"]: each["value"] for each in container["env"]}
    files = [in_shell / f"shard{index}.json" for index in range(job["completions"])]
    pods = []
    for index, path in enumerate(files):
        with path.open("wb") as file:
            own = environment | {"JOB_COMPLETION_INDEX": str(index)}
            pods.append(Process(subprocess.Popen([*container["command"], script], stdout=file, env=own)))
        processes.adopt(pods[-1])
    assert [each.wait(40) for each in pods] == [0] * 4
    status, output, errors = processes.run("report", "--merge", *map(str, files))
    assert (status, errors) == (0, "")
    assert "400 sent: 400 verified" in output.decode()


@pytest.mark.parametrize("block", blocks("sh", "console"), ids=where)
def test_commands_are_accepted(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [example] = blocks("toml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "echo.toml").write_text(example.text)
    for verb, *words in commands(block):
        _, bound, _ = app.parse_args([verb, *words], print_error=False, exit_on_error=False)
        named = [*bound.arguments.get("addresses", ()), *bound.arguments.get("bind", ())]
        for address in [*named, *filter(None, [bound.arguments.get("address")])]:
            parse_address(address)


def test_the_chapter_on_faults_has_every_fault_with_its_keys() -> None:
    text = (ROOT / "docs" / "faults.md").read_text()
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*) \|$", text, re.MULTILINE)
    keys = {name: row for names, row in rows for name in re.findall(r"`(\w+)`", names)}
    shared = {each.name for each in fields(StreamFault)}
    for name, kind in FAULTS.items():
        own = {each.name for each in fields(kind)} - shared
        assert own <= set(re.findall(r"`(\w+)`", keys[name])) or "as above" in keys[name], name
    for key in shared:
        assert f"`{key}=" in text


@pytest.mark.parametrize("block", blocks("sh", "console"), ids=where)
def test_the_faults_in_commands_are_accepted(block: Block) -> None:
    for _, *words in commands(block):
        for at, word in enumerate(words):
            if word == "--fault":
                parse_fault(words[at + 1])


@pytest.mark.parametrize("name", ["proxy.md", "udp.md"])
def test_the_commands_of_a_chapter_work_together(name: str, processes: Processes, short_path: Path) -> None:
    [block] = blocks("sh", of=[ROOT / "docs" / name])
    here = re.sub(r"(localhost)?:(7000|10000)", "127.0.0.1:0", block.text).replace("/run", str(short_path))
    serve = [words for words in commands(block._replace(text=here)) if words[0] == "serve"][-1]
    server = processes.serve(*serve[1:], listeners=len(re.findall(r"-b ", shlex.join(serve))))
    for send in commands(block._replace(text=here)):
        if send[0] == "send":
            words = [server.addresses[0] if word.endswith(":0") else word for word in send]
            status, echo, errors = processes.run(*words, stdin=b"a\nb\n")
            assert (status, errors) == (0, "")
            assert echo in (b"hello", b"onetwofour", b"a\nb\n")


def test_every_flag_in_the_chapters_exists(capfd: pytest.CaptureFixture[str]) -> None:
    for verb in (["serve"], ["send"], ["ping"], ["bench"], ["report"], []):
        assert main([*verb, "--help"]) == 0
    helps = capfd.readouterr().out
    for path in CHAPTERS:
        spans = re.findall(r"`(-[^`]+|anyecho[^`]+)`", re.sub(r"(?s)^```.*?^```", "", path.read_text(), flags=re.M))
        for flag in re.findall(r"(?<!\S)--?[a-z][a-z-]*", " ".join(spans)):
            assert re.search(rf"{flag}\b", helps), f"{path.name}: {flag}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", path.read_text()):
        linked = path.parent / target if target else path
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_architecture_has_every_layer() -> None:
    rows = re.findall(r"^\| (\d) \| (.*?) \|", (ROOT / "docs" / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    listed = {name: int(layer) for layer, names in rows for name in re.findall(r"`(\w+)/?`", names)}
    assert listed == {name: LAYERS[name] for name in {each.partition(".")[0] for each in modules()} - {""}}


def test_the_table_of_close_reasons_is_complete() -> None:
    table = (ROOT / "docs" / "limits.md").read_text().partition("## Close reasons")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE)
    assert rows == [(str(reason), reason.description) for reason in CloseReason]


def test_the_help_of_stats_has_every_close_reason() -> None:
    assert Stats.__doc__ is not None
    assert all(f"``{reason}``: {reason.description}" in Stats.__doc__ for reason in CloseReason)
