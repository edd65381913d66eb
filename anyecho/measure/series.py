"""A series of runs: repetitions, sweeps, and servers compared, in interleaved rounds.

A run without an address has a server of its own, started for it alone: no server is idle beside another one, and
the differences between processes of one server are within the differences between repetitions.
"""

from __future__ import annotations

__all__ = ("Cell", "Plan", "in_rounds", "plan_of", "run_cell", "run_plan")

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from time import time
from typing import TypeAlias

from anyecho.address import parse_address
from anyecho.backends import BACKENDS
from anyecho.errors import AnyechoError, CertificateError, StartError, UsageError
from anyecho.measure.bench import load_of
from anyecho.measure.control import BenchControl
from anyecho.measure.find_rate import RateSearch, parse_condition
from anyecho.measure.options import BenchOptions
from anyecho.measure.outcome import Measured, result_of
from anyecho.measure.own_server import OwnServer, open_own_server, placement
from anyecho.measure.result import Load, RunResult
from anyecho.measure.series_options import Engine, OwnServerOptions, SeriesOptions

_ENGINES: tuple[Engine, ...] = ("events", "tasks")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One configuration: a load, and the address of a server or the server to start."""

    options: BenchOptions
    server: OwnServerOptions
    address: str | None = None
    #: Backend of the load, and its processes.
    backend: str = ""
    processes: int = 1

    @property
    def shown_address(self) -> str:
        """The address in results: the same for each run, although a server of its own has a new port in each."""
        return self.address or self.server.address(self.options.connect.family)


#: One load against the server at an address.
Measure: TypeAlias = Callable[[str, BenchOptions, BenchControl], Awaitable[RunResult]]
#: Is called with each result, and what it is of.
Report: TypeAlias = Callable[[Cell, RunResult], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs of a command: each cell in each round, or one cell at the rates of a search."""

    cells: Sequence[Cell]
    rounds: int = 1
    search: RateSearch | None = None


def plan_of(
    address: str | None,
    options: BenchOptions,
    series: SeriesOptions,
    server: OwnServerOptions,
    *,
    backend: str = "",
    processes: int = 1,
) -> Plan:
    """Return the runs that the options ask for; the last two are of the load. Raises `UsageError`."""
    if address is not None:
        parse_address(address)
        if series.matrix:
            raise UsageError("matrix starts its own servers: leave the address out", options=("matrix",))

    servers = [server]
    if series.matrix:
        if (server.server_backend, server.server_engine) != (OwnServerOptions.server_backend, "auto"):
            text = "matrix compares every server: leave server_backend and server_engine out"
            raise UsageError(text, options=("matrix", "server_backend", "server_engine"))
        servers = list(_installed(server))
    cells = [
        Cell(options=load, server=each, address=address, backend=backend, processes=processes)
        for load in series.loads(options)
        for each in servers
    ]
    search = None
    if series.find_rate is not None:
        search = RateSearch(parse_condition(series.find_rate), series.rate[0])
    return Plan(cells=cells, rounds=series.rounds, search=search)


async def run_plan(plan: Plan, measure: Measure, control: BenchControl, report: Report) -> None:
    """Run `plan`; `report` is called with each result. Raises the errors of `run_cell`."""
    if plan.search is not None:
        await _run_search(plan.cells[0], plan.search, measure, control, report)
    else:
        await _run_series(plan.cells, plan.rounds, measure, control, report)


def _installed(server: OwnServerOptions) -> Iterator[OwnServerOptions]:
    for backend in BACKENDS:
        if find_spec(backend) is None:
            continue
        if server.carrier == "udp":  # a server has one engine for UDP
            yield replace(server, server_backend=backend)
        else:
            for engine in _ENGINES:
                yield replace(server, server_backend=backend, server_engine=engine)


def in_rounds(cells: Sequence[Cell], rounds: int) -> Iterator[tuple[int, Cell]]:
    """Yield each cell once in each round, in the reverse order in every second round."""
    for number in range(rounds):
        for cell in cells[:: -1 if number % 2 else 1]:
            yield number, cell


async def _run_series(
    cells: Sequence[Cell],
    rounds: int,
    measure: Measure,
    control: BenchControl,
    report: Report,
) -> None:
    """Run each cell in each round; `report` is called with each result.

    If the server of a cell fails, the cell is not tried again, and its result has the error. After an interrupt,
    the last result is marked.

    Raises:
        AnyechoError: the only run fails, or the first one at an address.
        UsageError: the options are wrong.
        CertificateError: a file of the TLS options cannot be used.
    """
    failed: list[Cell] = []
    is_single = len(cells) * rounds == 1
    must_work = is_single or cells[0].address is not None
    for number, cell in in_rounds(cells, rounds):
        if cell in failed:
            continue
        try:
            result = await run_cell(cell, measure, control)
        except (UsageError, CertificateError):
            raise
        except AnyechoError as exc:
            if must_work:
                raise
            result = _unmeasured(cell, str(exc))
        must_work = False
        if result.error and not result.counts.verified and not control.interrupted:
            failed.append(cell)
        report(cell, result if is_single else replace(result, round=number))
        if control.interrupted:
            if not result.interrupted:  # the signal came between two runs
                report(cell, replace(_unmeasured(cell, "interrupted", interrupted=True), round=number))
            return


async def _run_search(
    cell: Cell,
    search: RateSearch,
    measure: Measure,
    control: BenchControl,
    report: Report,
) -> None:
    """Run `cell` at each rate that `search` asks for; `report` is called with each result. Raises as `run_cell`."""
    while search.rate is not None:
        step = replace(cell, options=replace(cell.options, rate=search.rate))
        result = await run_cell(step, measure, control)
        report(step, replace(result, notes=(*result.notes, search.report(result))))


async def run_cell(cell: Cell, measure: Measure, control: BenchControl) -> RunResult:
    """Run the load of `cell` once. Raises the errors of `measure`, and `StartError` if its own server fails."""
    if cell.address is not None:
        return await measure(cell.address, cell.options, control)

    cores = placement(cell.options.cpu, cell.processes)
    async with AsyncExitStack() as opened:
        started: list[OwnServer] = []
        with control.interruptible():
            opening = open_own_server(cell.server, family=cell.options.connect.family, core=cores.server)
            started.append(await opened.enter_async_context(opening))
        if not started:
            return _unmeasured(cell, "interrupted", interrupted=True)

        [server] = started
        control.server_cpu = server.cpu_ns
        try:
            result = await measure(server.address, _for_own_server(cell, cores.load), control)
        except StartError as exc:
            raise type(exc)(server.failure() or str(exc)) from exc
        finally:
            control.server_cpu = lambda: None
        failure = server.failure()

    notes = (*result.notes, cores.note)
    return replace(result, load=_shown(result.load, cell), error=failure or result.error, notes=notes)


def _for_own_server(cell: Cell, cores: str | None) -> BenchOptions:
    connect = cell.options.connect
    if cell.server.carrier == "tls" and connect.tls.cacert is None:
        # The certificate is made for this run, and its CA is known to the server only.
        connect = replace(connect, tls=replace(connect.tls, insecure=True))
    return replace(cell.options, cpu=cores, connect=connect)


def _shown(load: Load, cell: Cell) -> Load:
    """Return `load` with the address and the server that results have."""
    if cell.address is not None:
        return load

    server = cell.server
    return replace(
        load, address=cell.shown_address, server_backend=server.server_backend, server_engine=server.engine
    )


def _unmeasured(cell: Cell, error: str, *, interrupted: bool = False) -> RunResult:
    """Return the result of a run of `cell` that did not begin."""
    address = parse_address(cell.shown_address)
    load = load_of(address, cell.options, connections=cell.options.connections)
    measured = Measured(
        records=(),
        start=0,
        end=0,
        now=0,
        started_at=time(),
        timeout=None,
        lags=(),
        cpu_share=0.0,
        is_pinned=False,
        backend=cell.backend,
        failure=error,
        interrupted=interrupted,
    )
    return result_of(measured, _shown(load, cell))
