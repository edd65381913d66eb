"""A console for the help pages that rich prints, of bounded width.

Without bounds, cyclopts (5.5: ``_wrap_labels``) loops for ever at a width of 0, 1 or 2, and rich raises
`MemoryError` at a very large one.
"""

from __future__ import annotations

__all__ = ("help_console",)

import os
from contextlib import suppress

from rich.console import Console

#: Below 40 columns the table of options has a few letters a line; a narrower terminal wraps the lines instead.
_MIN_WIDTH = 40
_MAX_WIDTH = 1000
_DEFAULT_WIDTH, _DEFAULT_HEIGHT = 80, 25


def help_console() -> Console:
    """Return a console as wide as COLUMNS or the terminal, within bounds."""
    # The height is given too: without it, rich fails on some values of LINES that are not numbers.
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
