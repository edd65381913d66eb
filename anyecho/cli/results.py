"""Print results, write their files, apply gates: what the verbs bench and report share."""

from __future__ import annotations

__all__ = (
    "GATE_FAILED",
    "check_configurations",
    "check_outputs",
    "deliver",
    "parsed_gates",
    "print_lines",
    "write_file",
)

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from anyecho.cli.output_options import STDOUT, OutputOptions, is_device
from anyecho.cli.streams import print_error
from anyecho.errors import LocalError, UsageError
from anyecho.measure.compare import Comparison, Group
from anyecho.measure.gates import Gate, broken_gates, parse_gate
from anyecho.measure.hdr_text import interval_log, percentile_distribution
from anyecho.measure.histogram import Histogram
from anyecho.measure.result import Document
from anyecho.net.descriptors import write_all

#: Exit status if a condition of --fail-if holds.
GATE_FAILED = 99
#: The name of a file may have bytes that are not UTF-8.
_ERRORS = "backslashreplace"


def parsed_gates(outputs: OutputOptions, *, has_baseline: bool) -> list[Gate]:
    """Return the gates of --fail-if. Raises `UsageError` for a wrong one, and for one that lacks its baseline."""
    gates = [parse_gate(text) for text in outputs.fail_if]
    for gate in gates:
        if gate.relative and not has_baseline:
            raise UsageError(
                f"fail_if {gate.text!r} needs a baseline: anyecho report BASELINE FILE", options=("fail_if",)
            )

    return gates


def check_configurations(outputs: OutputOptions, count: int) -> None:
    """Raise `UsageError` for a percentile distribution of `count` configurations, unless that is one."""
    if count > 1 and outputs.hdr is not None and _is_distribution(outputs.hdr):
        text = "hdr: a .hgrm file has one configuration, and there are several: write a .hlog file"
        raise UsageError(text, options=("hdr",))


def check_outputs(outputs: OutputOptions, *, has_baseline: bool) -> None:
    """Raise `UsageError` for a wrong gate, and for a file in a directory that is absent or cannot be written."""
    parsed_gates(outputs, has_baseline=has_baseline)
    for option, file in outputs.files:
        path = Path(os.path.realpath(file))
        if os.fspath(file) == STDOUT or is_device(path):
            continue
        number = 0
        if path.is_dir():
            number = errno.EISDIR
        elif not path.parent.is_dir():
            number = errno.ENOENT
        elif not os.access(path.parent, os.W_OK | os.X_OK):
            number = errno.EACCES
        if number:
            raise UsageError(f"cannot write {os.fspath(file)}: {os.strerror(number)}", options=(option,))


def deliver(
    document: Document,
    outputs: OutputOptions,
    lines: Sequence[str],
    *,
    judged: Sequence[Group],
    comparisons: Sequence[Comparison] = (),
    page: Callable[[], str] | None = None,
) -> int:
    """Print `lines`, write the files of `document`, apply the gates to `judged`; return the exit status, 0 or 99.

    Every output is tried, also after one has failed; then `LocalError` is raised.
    """
    gates = parsed_gates(outputs, has_baseline=bool(comparisons))
    jobs: list[Callable[[], None]] = []
    if not outputs.stdout_is_taken:
        jobs.append(partial(print_lines, lines))
    if outputs.json is not None:
        jobs.append(partial(write_file, outputs.json, document.to_json()))
    if outputs.hdr is not None:
        jobs.append(partial(write_file, outputs.hdr, hdr_text(document, outputs.hdr)))
    if outputs.html is not None and page is not None:
        jobs.append(partial(write_file, outputs.html, page()))
    failures = []
    for job in jobs:
        try:
            job()
        except LocalError as exc:
            failures.append(exc)
    if failures:
        raise failures[0]

    broken = broken_gates(gates, judged, comparisons)
    for line in broken:
        print_error(f"failed: {line}")

    return GATE_FAILED if broken else 0


def hdr_text(document: Document, path: str | os.PathLike[str]) -> str:
    """Return the text of --hdr, in the form that the name of the file asks for."""
    if _is_distribution(path):
        lines = percentile_distribution(Histogram.merged(run.latency for run in document.runs))
    else:
        lines = interval_log(document.runs)

    return "".join(f"{line}\n" for line in lines)


def _is_distribution(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).endswith(".hgrm")


def print_lines(lines: Sequence[str]) -> None:
    """Write `lines` to standard output, with control characters of a result file escaped. Raises `LocalError`."""
    _write_stdout("".join(f"{_printable(line)}\n" for line in lines))


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def write_file(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` completely, or leave the file there as it was. Raises `LocalError`.

    ``-`` is standard output. A device or a FIFO is written to directly.
    """
    if os.fspath(path) == STDOUT:
        _write_stdout(text)
        return

    target = Path(os.path.realpath(path))
    try:
        if is_device(target):
            target.write_text(text, encoding="utf-8", errors=_ERRORS)
        else:
            _replace(target, text)
    except OSError as exc:
        raise LocalError(f"cannot write {os.fspath(path)}: {exc.strerror}") from exc


def _replace(target: Path, text: str) -> None:
    # Not by the number of the process: in containers it is the same, and the directory may be.
    temporary = target.with_name(f".anyecho.{os.urandom(8).hex()}")
    try:
        with temporary.open("x", encoding="utf-8", errors=_ERRORS) as file:
            file.write(text)
            with suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_stdout(text: str) -> None:
    try:
        write_all(1, text.encode(errors=_ERRORS))
    except OSError as exc:
        raise LocalError(f"cannot write to standard output: {exc.strerror}") from exc
