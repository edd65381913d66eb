"""Run a load until it is over or a signal ends it, print its figures, and write its files."""

from __future__ import annotations

__all__ = ("Outputs", "run_and_report")

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anyio import create_task_group

from anyecho._version import __version__
from anyecho.backends import Backend, run
from anyecho.cli.signals import Signals
from anyecho.errors import LocalError, unwrap_single
from anyecho.measure.bench import BenchControl, run_bench
from anyecho.measure.machine import MachineState, library_versions
from anyecho.measure.options import BenchOptions
from anyecho.measure.result import Document, RunResult
from anyecho.measure.text import document_lines
from anyecho.net.descriptors import write_all

_STDOUT = 1
_STDOUT_NAME = Path("-")


@dataclass(frozen=True)
class Outputs:
    """Files that a result is written to; ``-`` is standard output, without the text then."""

    json: Path | None = None

    @property
    def stdout_is_taken(self) -> bool:
        return self.json == _STDOUT_NAME


def run_and_report(
    address: str, options: BenchOptions, backend: Backend, outputs: Outputs, signals: Signals
) -> int:
    """Run the load, print, write; return the exit status. Raises the errors of `run_bench`, and `LocalError`."""
    state = MachineState.now()
    result, signum = run(_run, address, options, backend, signals, backend=backend)
    document = Document(
        version=__version__,
        command=("anyecho", *sys.argv[1:]),
        machine=state.until_now(),
        versions=library_versions(),
        runs=(result,),
    )
    # First the screen: a file that cannot be written loses no figure.
    if not outputs.stdout_is_taken:
        _print(document_lines(document, options.percentiles))
    if outputs.json is not None:
        _write(outputs.json, document.to_json())

    return 128 + signum if signum else _status(result)


async def _run(address: str, options: BenchOptions, backend: Backend, signals: Signals) -> tuple[RunResult, int]:
    """Return the result, and the number of the signal that ended the run early, or 0."""
    control = BenchControl()
    signum = 0

    async def interrupt_on_signal() -> None:
        nonlocal signum
        signum = await signals.next()
        control.interrupt()

    with unwrap_single():
        async with create_task_group() as tasks:
            tasks.start_soon(interrupt_on_signal)
            result = await run_bench(address, options, backend=backend, control=control)
            tasks.cancel_scope.cancel()

    return result, signum


def _status(result: RunResult) -> int:
    counts = result.counts
    return int(counts.verified != counts.sent or counts.connect_failed > 0 or not counts.sent)


def _print(lines: Sequence[str]) -> None:
    try:
        write_all(_STDOUT, "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))
    except OSError as exc:
        raise LocalError(f"cannot write to standard output: {exc.strerror}") from exc


def _write(path: Path, text: str) -> None:
    if path == _STDOUT_NAME:
        _print([text.rstrip("\n")])
        return
    try:
        path.write_text(text)
    except OSError as exc:
        raise LocalError(f"cannot write {path}: {exc.strerror}") from exc
