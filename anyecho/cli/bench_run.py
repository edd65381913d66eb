"""Run a load until it is over or a signal ends it, print its figures, and write its files."""

from __future__ import annotations

__all__ = ("run_and_report",)

import logging
import sys
from collections.abc import Sequence

from anyio import create_task_group

from anyecho._version import __version__
from anyecho.backends import Backend, run
from anyecho.cli.output_options import OutputOptions
from anyecho.cli.progress import ProgressLine
from anyecho.cli.results import check_configurations, check_outputs, deliver
from anyecho.cli.signals import Signals
from anyecho.errors import unwrap_single
from anyecho.measure.checks import rate_text
from anyecho.measure.compare import compare_within, groups
from anyecho.measure.control import BenchControl
from anyecho.measure.division import measure_of
from anyecho.measure.machine import MachineState, library_versions
from anyecho.measure.options import BenchOptions
from anyecho.measure.page import page
from anyecho.measure.result import Document, RunResult
from anyecho.measure.series import Cell, Measure, Plan, run_plan
from anyecho.measure.series_text import series_lines
from anyecho.measure.shard_options import ShardOptions
from anyecho.measure.text import describe_load

logger = logging.getLogger("anyecho.client")


def run_and_report(
    plan: Plan, shards: ShardOptions, backend: Backend, outputs: OutputOptions, signals: Signals
) -> int:
    """Run the loads, print, write; return the exit status. Raises the errors of `run_plan`, and `LocalError`."""
    check_outputs(outputs, has_baseline=False)  # before the load
    check_configurations(outputs, len(plan.cells) + (plan.search is not None))  # a search has one for each rate
    state = MachineState.now()
    with measure_of(plan, shards, backend) as measure:
        runs, signum = run(_run, plan, measure, signals, backend=backend)
    document = Document(
        version=__version__,
        command=("anyecho", *sys.argv[1:]),
        machine=state.until_now(),
        versions=library_versions(),
        runs=tuple(runs),
    )
    lines = series_lines(document, plan.cells[0].options.percentiles)
    if plan.search is not None:
        lines = [plan.search.summary(), "", *lines]
    name = plan.cells[0].shown_address if len(plan.cells) == 1 else ""
    comparisons = compare_within(document)
    title = name or "anyecho bench"
    status = deliver(
        document,
        outputs,
        lines,
        judged=groups(document, name),
        page=lambda: page([(title, document)], comparisons),
    )
    return 128 + signum if signum else status or _status(plan, runs)


async def _run(plan: Plan, measure: Measure, signals: Signals) -> tuple[list[RunResult], int]:
    """Return the results, and the number of the signal that ended the runs early, or 0."""
    progress = ProgressLine()
    control = BenchControl(progress.update)
    results: list[RunResult] = []
    signum = 0

    async def interrupt_on_signal() -> None:
        nonlocal signum
        signum = await signals.next()
        control.interrupt()

    async def measure_shown(address: str, options: BenchOptions, control: BenchControl) -> RunResult:
        progress.begin(options)
        try:
            return await measure(address, options, control)
        finally:
            progress.end()

    def report(cell: Cell, result: RunResult) -> None:
        results.append(result)
        failed = bool(result.error) and not result.counts.verified
        if failed or len(plan.cells) * plan.rounds > 1 or plan.search:
            text = f"{rate_text(result.rate)}" if not failed else result.error
            logger.log(logging.WARNING if failed else logging.INFO, "%s: %s", describe_load(result.load), text)

    with unwrap_single():
        async with create_task_group() as tasks:
            tasks.start_soon(interrupt_on_signal)
            await run_plan(plan, measure_shown, control, report)
            tasks.cancel_scope.cancel()

    return results, signum


def _status(plan: Plan, runs: Sequence[RunResult]) -> int:
    """Return 1 if a message did not come back equal. In a search, rates that are too high are no failure."""
    if plan.search is not None:
        return int(plan.search.held is None)

    return max(map(_failed, runs))


def _failed(run: RunResult) -> int:
    counts = run.counts
    return int(counts.verified != counts.sent or not counts.sent or counts.connect_failed > 0 or bool(run.error))
