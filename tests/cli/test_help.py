"""Help pages are readable at any width, and complete on any standard output."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import termios
from collections.abc import Callable

import pytest

from anyecho.cli.help_pages import GROUPS
from anyecho.cli.main import main
from tests.support.peers import unread
from tests.support.pipes import redirected
from tests.support.process import Processes, terminal, unwritable, wait_until

VERBS = ("serve", "send", "ping", "bench", "report")
#: Flags that must be on the first screen.
NEEDED = {
    "serve": "--bind --backend --handler --fault --max-connections --idle-timeout --ssl-certfile --ssl-keyfile "
    "--access-log --config --workers",
    "bench": "--connections --rate --size --pipeline --duration --requests --find-rate --json --fail-if --backend",
}
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


@pytest.fixture
def help_of(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[str, int], str]:
    """Return the help page of a verb, at a width in columns."""

    def page(verb: str, columns: int) -> str:
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", str(columns))
            assert main([verb, "--help"]) == 0

        return capfd.readouterr().out

    return page


def panels(page: str) -> dict[str, list[str]]:
    """Return the flags of each panel of a page, by the title of the panel."""
    return {
        title: re.findall(r"^│ (-\S+)", rows, re.M)
        for title, rows in re.findall(r"^╭─ (.+?) ─*╮\n(.*?)^╰", page, re.M | re.S)
    }


@pytest.mark.parametrize("verb", VERBS)
def test_the_text_of_a_help_page_breaks_at_the_width_of_the_terminal_only(
    verb: str, help_of: Callable[[str, int], str]
) -> None:
    page = help_of(verb, 1000)
    above, below = page.partition("╭")[0], page.rpartition("╯")[2]

    # The lines are the usage and the paragraphs, with an empty line after each.
    for text in (above.rstrip(), below.strip()):
        assert not [line for line in text.split("\n")[1::2] if line.strip()]


@pytest.mark.parametrize("verb", VERBS)
def test_each_flag_is_in_a_group_and_the_groups_have_their_order(
    verb: str, help_of: Callable[[str, int], str]
) -> None:
    titles = [title for title, flags in panels(help_of(verb, 80)).items() if flags]

    assert titles[0] == "Options"
    assert titles == [name for name in GROUPS if name in titles]


@pytest.mark.parametrize("verb", VERBS)
def test_the_first_screen_of_a_page_has_the_flags_that_most_command_lines_need(
    verb: str, help_of: Callable[[str, int], str]
) -> None:
    page = help_of(verb, 80)
    screen = "\n".join(page.splitlines()[:40])
    common = panels(screen + "\n")["Options"]

    assert common == panels(page)["Options"]
    assert set(common) >= set(NEEDED.get(verb, "").split())
    assert len(common) <= 12


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
    assert {"--deadline", "--repeat", "--log-format"} <= set(re.findall("--[a-z-]+", text))
    assert page.endswith(" the file.\n")


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
