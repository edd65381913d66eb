"""Run a load until it is over or a signal ends it, print its figures, and write its files."""

from __future__ import annotations

__all__ = ("run_and_report",)

import sys

from anyio import create_task_group

from anyecho._version import __version__
from anyecho.backends import Backend, run
from anyecho.cli.output_options import OutputOptions
from anyecho.cli.results import deliver, parsed_gates
from anyecho.cli.signals import Signals
from anyecho.errors import unwrap_single
from anyecho.measure.bench import BenchControl, run_bench
from anyecho.measure.machine import MachineState, library_versions
from anyecho.measure.options import BenchOptions
from anyecho.measure.page import page
from anyecho.measure.result import Document, RunResult
from anyecho.measure.text import document_lines


def run_and_report(
    address: str, options: BenchOptions, backend: Backend, outputs: OutputOptions, signals: Signals
) -> int:
    """Run the load, print, write; return the exit status. Raises the errors of `run_bench`, and `LocalError`."""
    parsed_gates(outputs, has_baseline=False)  # before the load
    state = MachineState.now()
    result, signum = run(_run, address, options, backend, signals, backend=backend)
    document = Document(
        version=__version__,
        command=("anyecho", *sys.argv[1:]),
        machine=state.until_now(),
        versions=library_versions(),
        runs=(result,),
    )
    lines = document_lines(document, options.percentiles)
    status = deliver(document, outputs, lines, name=address, page=lambda: page([(address, document)]))
    return 128 + signum if signum else status or _status(result)


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
            result = await run_bench(address, options, backend=backend, control=control, exclusive=True)
            tasks.cancel_scope.cancel()

    return result, signum


def _status(result: RunResult) -> int:
    counts = result.counts
    return int(counts.verified != counts.sent or counts.connect_failed > 0 or not counts.sent)
