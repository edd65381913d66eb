"""The front door: one word per verb, one line per mistake, and what each kind of failure exits with."""

from __future__ import annotations

__all__ = ("app", "main")

import os
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from cyclopts import App, CycloptsError
from cyclopts.config import Env

from anyecho._version import __version__
from anyecho.cli.flags import flattened
from anyecho.cli.send import send
from anyecho.cli.serve import serve
from anyecho.errors import AnyechoError, StartError, UsageError

_FAILED = 1
_USAGE = 2
_COULD_NOT_START = 3


def _version() -> str:
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
    config=Env("ANYECHO_", command=False),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
)
app.command(flattened(serve))
app.command(flattened(send))
app.register_install_completion_command(help="Install completion for this shell (bash, zsh or fish), and exit.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (by default those of the process) name; return the exit status."""
    _open_standard_streams()
    try:
        status = app(list(sys.argv[1:] if arguments is None else arguments))
        return status if isinstance(status, int) else 0
    except (AnyechoError, CycloptsError) as exc:
        _complain(exc)
        if isinstance(exc, StartError):
            return _COULD_NOT_START

        return _USAGE if isinstance(exc, UsageError | CycloptsError) else _FAILED
    except OSError as exc:  # a listener that can accept no more, or no descriptors for the event loop
        _complain(exc)
        return _FAILED


def _open_standard_streams() -> None:
    # Started with one of them closed, the next socket would get its number, and be written to. Opened the wrong way
    # round, it still fails for whoever needs it.
    for descriptor, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)


def _complain(exc: Exception) -> None:
    with suppress(OSError):
        os.write(2, f"anyecho: {' '.join(str(exc).split())}\n".encode(errors="backslashreplace"))
