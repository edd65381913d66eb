"""Help pages are readable at any width, and complete on any standard output."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import termios

import pytest

from anyecho.cli.main import main
from tests.support.peers import unread
from tests.support.pipes import redirected
from tests.support.process import Processes, terminal, unwritable, wait_until

#: Values of COLUMNS, and the resulting width of a page.
WIDTHS = {
    "0": 80,
    "1": 40,
    "2": 40,
    "3": 40,
    "40": 40,
    "100": 100,
    "99999999999": 1000,
    "9" * 5000: 80,
    "-5": 80,
    "": 80,
    "wide": 80,
    "²": 80,  # a digit for str.isdigit, no number for int
}


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of this process, with `variables` as the only ones about the terminal."""
    return {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | variables


def width(page: str) -> int:
    """Return the width of a page, which its boxes fill."""
    return max(map(len, page.splitlines()))


@pytest.mark.parametrize("verb", ["serve", "send", "ping", "bench"])
def test_the_text_of_a_help_page_breaks_at_the_width_of_the_terminal_only(
    verb: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", "1000")
        assert main([verb, "--help"]) == 0

    text = capfd.readouterr().out.partition("\u256d")[0]
    # The lines are the usage and the paragraphs, with an empty line after each.
    assert not [line for line in text.rstrip().split("\n")[1::2] if line.strip()]


@pytest.mark.parametrize(
    ("variable", "value", "columns"),
    [("COLUMNS", value, columns) for value, columns in WIDTHS.items()]
    + [("LINES", value, 80) for value in ("0", "²", "9" * 5000)],
    ids=lambda part: str(part)[:12],
)
def test_help_is_complete_for_any_environment_of_the_terminal(
    variable: str, value: str, columns: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Only during the call: the report of pytest uses COLUMNS too.
    with monkeypatch.context() as patch, terminal() as (_, screen), redirected(0, screen):  # a terminal of no size
        for name in ("COLUMNS", "LINES"):
            patch.delenv(name, raising=False)
        patch.setenv(variable, value)
        assert main(["send", "--help"]) == 0

    page = capfd.readouterr().out
    assert width(page) == columns
    text = re.sub(r"[\s│]", "", page)
    assert {"ANYECHO_DEADLINE", "ANYECHO_REPEAT", "ANYECHO_LOG_FORMAT"} <= set(re.findall("ANYECHO_[A-Z_]+", text))
    assert page.endswith("╯\n")


@pytest.mark.parametrize(("columns", "longest"), [(0, 80), (1, 40), (2, 40), (60, 60)])
def test_help_ends_on_a_terminal_of_any_width(processes: Processes, columns: int, longest: int) -> None:
    with terminal() as (_, screen):
        fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        # Standard output is a pipe, as to a pager; standard error is the terminal.
        process = processes.start("send", "--help", env=environment(), stderr=screen)
        assert process.popen.stdout is not None
        page = process.popen.stdout.read().decode()
        assert process.wait() == 0

    assert width(page) == longest


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], []])
def test_a_non_blocking_standard_output_gets_the_whole_page(processes: Processes, arguments: list[str]) -> None:
    _, usual, _ = processes.run(*arguments)
    read_end, write_end = os.pipe()
    capacity = fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(write_end, False)
    with open(read_end, "rb") as reader:
        process = processes.start(*arguments, stdout=write_end)
        os.close(write_end)
        if len(usual) > capacity:
            # Of a write that does not fit, the kernel may take nothing.
            wait_until(lambda: unread(read_end) > capacity // 4)
        assert reader.read() == usual

    assert process.wait() == 0


@pytest.mark.parametrize("argument", ["--help", "--version"])
@pytest.mark.parametrize(
    ("kind", "errors"),
    [("full", "anyecho: cannot write to standard output: No space left on device\n"), ("gone", "")],
)
def test_a_page_that_cannot_be_written_is_exit_1_and_at_most_one_line(
    processes: Processes, argument: str, kind: str, errors: str
) -> None:
    end = unwritable(kind)
    process = processes.start(argument, stdout=end)
    os.close(end)

    assert process.errors() == errors
    assert process.wait() == 1
