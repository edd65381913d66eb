"""The standard streams: open ones, an output that loses nothing, and the one line of an error.

Verbs write their results with `write_all` themselves. What prints through `sys.stdout` is cyclopts.
"""

from __future__ import annotations

__all__ = ("complain", "open_standard_streams", "printed_whole")

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

from anyecho.errors import LocalError
from anyecho.net.descriptors import write_all

#: How long the line of an error waits for a reader of standard error before it is given up.
_COMPLAIN_TIMEOUT = 1.0


def open_standard_streams() -> None:
    """Open on /dev/null those of the three descriptors that are closed.

    Otherwise the next socket gets the number of a closed one, and is written to. They are opened the wrong way
    round, so that a verb that needs one of them fails.
    """
    for descriptor, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)


@contextmanager
def printed_whole() -> Iterator[None]:
    """Within the block, what is printed reaches standard output whole, even if it is in non-blocking mode.

    Raises `LocalError` if it does not, and `BrokenPipeError` if the reader has closed its end, which needs no line.
    """
    encoding = getattr(sys.stdout, "encoding", None)
    # Without a buffer: what could not be written would be written again when the buffer is closed.
    with (
        _Stdout(1, "w", closefd=False) as raw,
        redirect_stdout(io.TextIOWrapper(raw, encoding, "backslashreplace", write_through=True)),
    ):
        yield


class _Stdout(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            write_all(1, data)
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise LocalError(f"cannot write to standard output: {exc.strerror}") from exc

        return len(data)


def complain(text: str) -> None:
    """Write `text` as one line to standard error; give up in silence when that takes longer than a second."""
    with suppress(OSError):
        line = f"anyecho: {' '.join(text.split())}\n"
        write_all(2, line.encode(errors="backslashreplace"), timeout=_COMPLAIN_TIMEOUT)
