"""Where the verbs bench and report write results, and the conditions under which they fail."""

from __future__ import annotations

__all__ = ("STDOUT", "OutputOptions", "is_device")

import os
import stat
from collections import Counter
from dataclasses import dataclass

from anyecho.errors import UsageError
from anyecho.options import FilePath, option, option_group
from anyecho.validation import check_types

#: The name of a file that means standard output.
STDOUT = "-"


@option_group("Results")
@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Files for a result, each beside the text on standard output.

    Raises:
        UsageError: a value has the wrong type, or two outputs are the same file.
    """

    json: FilePath | None = option(
        None,
        "Write the result as JSON to this file; -: standard output, without text.",
        name=("--json", "-o"),
        allow_leading_hyphen=True,
        group="Options",
    )
    hdr: FilePath | None = option(
        None,
        "Write an HdrHistogram interval log to this file; if its name ends in .hgrm, a percentile distribution.",
        allow_leading_hyphen=True,
    )
    html: FilePath | None = option(None, "Write a page with charts to this file.", allow_leading_hyphen=True)
    fail_if: tuple[str, ...] = option(
        (),
        "Exit with 99 if this holds, like 'p99>5ms', 'lost>0' or against a baseline 'p99>+5%'; repeatable.",
        group="Options",
    )

    def __post_init__(self) -> None:
        check_types(self)
        names = Counter(os.fspath(each) for _, each in self.files if not is_device(each))
        for name, count in names.items():
            if count > 1:
                raise UsageError(f"two outputs have the same file: {name}")

    @property
    def files(self) -> list[tuple[str, FilePath]]:
        """The outputs that are asked for, by the name of their option."""
        return [(name, file) for name in ("json", "hdr", "html") if (file := getattr(self, name)) is not None]

    @property
    def stdout_is_taken(self) -> bool:
        """Whether a file is standard output, so that no text is printed there."""
        return any(os.fspath(file) == STDOUT for _, file in self.files)


def is_device(file: FilePath) -> bool:
    """Return whether `file` exists and is written to directly: a device or a FIFO."""
    try:
        mode = os.stat(file).st_mode
    except OSError:
        return False

    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
