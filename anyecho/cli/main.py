"""Parse the command line, run the verb, and print an error as one line; the exit status is that of its kind."""

from __future__ import annotations

__all__ = ("app", "main")

import os
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from cyclopts import App, CycloptsError, Parameter

from anyecho._version import __version__
from anyecho.cli.config_file import ConfigFile
from anyecho.cli.environment import ENVIRONMENT
from anyecho.cli.flags import explicit
from anyecho.cli.mistakes import describe
from anyecho.cli.streams import open_standard_streams, print_error, unbuffered_stdout
from anyecho.errors import AnyechoError, StartError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

_FAILED = 1
_USAGE = 2
_COULD_NOT_START = 3
#: The width of a help page. Below 40 columns the table of options has a few letters a line; a narrower terminal
#: wraps the lines instead.
_MIN_WIDTH = 40
_MAX_WIDTH = 1000
_DEFAULT_WIDTH, _DEFAULT_HEIGHT = 80, 25


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # late, because its import takes 25 ms

    parts = []
    for name in ("anyio", "trio", "uvloop"):
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"no {name}")

    return f"anyecho {__version__} ({', '.join(parts)}, Python {platform.python_version()})"


app = App(
    name="anyecho",
    help="The echo service for testing networks, clients and event loops.",
    help_format="plaintext",
    version=_version,
    config=(ENVIRONMENT, ConfigFile(ENVIRONMENT)),
    default_parameter=Parameter(show_env_var=False),  # the end of each page has the rule
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
)
ENVIRONMENT.root = app
for verb in ("serve", "send", "bench", "ping", "report"):
    # A verb is imported when it is used: the imports of all five are a third of the start.
    app.command(f"anyecho.cli.{verb}:app", name=verb)
app.register_install_completion_command(help="Install completion for this shell (bash, zsh or fish), and exit.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in `arguments` (default: ``sys.argv[1:]``); return the exit status."""
    open_standard_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with unbuffered_stdout():
            status = app(explicit(arguments), console=_console(arguments))
        return status if isinstance(status, int) else 0
    except CycloptsError as exc:
        print_error(describe(exc))
        return _USAGE
    except AnyechoError as exc:
        print_error(ENVIRONMENT.substitute(str(exc), exc.options))
        # ping(8) has one status for every error.
        if isinstance(exc, UsageError) or [*arguments][:1] == ["ping"]:
            return _USAGE

        return _COULD_NOT_START if isinstance(exc, StartError) else _FAILED
    except OSError as exc:  # a listener failed for good, or there are no descriptors for the event loop
        print_error(str(exc))
        return _FAILED


def _console(arguments: Sequence[str]) -> Console | None:
    """Return a console for help pages, as wide as COLUMNS or the terminal, within bounds; None for a verb."""
    if arguments and arguments[0] in app and not {*app.help_flags, *app.version_flags} & set(arguments):
        return None  # a verb prints nothing on it

    # Late, because the import of rich takes 25 ms, a tenth of the start of a verb.
    from rich.console import Console

    if not arguments or (arguments[0].startswith("-") and not {*app.help_flags}.isdisjoint(arguments)):
        app.resolved_commands()  # cyclopts knows the summary of a verb only once it is imported
    # Without bounds, cyclopts (5.5: `_wrap_labels`) loops for ever at a width of 0, 1 or 2, and rich raises
    # `MemoryError` at a very large one. Without a height, rich fails on some values of LINES that are not numbers.
    return Console(width=min(max(_columns(), _MIN_WIDTH), _MAX_WIDTH), height=_DEFAULT_HEIGHT)


def _columns() -> int:
    """Return COLUMNS, if it is a number above 0, else the width of the terminal."""
    with suppress(KeyError, ValueError):
        if (columns := int(os.environ["COLUMNS"])) > 0:
            return columns
    for descriptor in (0, 1, 2):
        with suppress(OSError):
            if columns := os.get_terminal_size(descriptor).columns:
                return columns

    return _DEFAULT_WIDTH
