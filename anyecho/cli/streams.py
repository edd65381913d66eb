"""The standard streams of the process: reopen closed ones, print without a buffer, print an error.

Only cyclopts prints through `sys.stdout`; verbs write their results with `write_all`.
"""

from __future__ import annotations

__all__ = ("open_standard_streams", "print_error", "unbuffered_stdout")

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

from anyecho.errors import LocalError
from anyecho.net.descriptors import write_all

#: Seconds after which `print_error` gives up if standard error is full.
_ERROR_TIMEOUT = 1.0


def open_standard_streams() -> None:
    """Open each of the descriptors 0, 1 and 2 that is closed on /dev/null.

    Otherwise a socket would get its number, and log lines would go to a peer. Standard input is opened for writing
    and the outputs for reading, so that their use fails.
    """
    for descriptor, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)


@contextmanager
def unbuffered_stdout() -> Iterator[None]:
    """Within the block, print to standard output without a buffer and completely, even in non-blocking mode.

    Printing raises `LocalError` if a write fails, and `BrokenPipeError` if the reader has closed the pipe.
    """
    encoding = getattr(sys.stdout, "encoding", None)
    # No buffer: after a failed write, closing the buffer would write the same bytes again.
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


def print_error(text: str) -> None:
    """Write `text` as one line to standard error; give up silently after a second."""
    with suppress(OSError):
        line = f"anyecho: {' '.join(text.split())}\n"
        write_all(2, line.encode(errors="backslashreplace"), timeout=_ERROR_TIMEOUT)
