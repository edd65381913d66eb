"""The order of the runs of a series, and what becomes of it when a server fails or a signal comes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from anyecho.errors import ConnectError, StartError, UsageError
from anyecho.measure import series
from anyecho.measure.bench import run_bench
from anyecho.measure.control import BenchControl
from anyecho.measure.options import BenchOptions
from anyecho.measure.result import Document, RunResult
from anyecho.measure.series import Cell, Plan, in_rounds, plan_of, run_plan
from anyecho.measure.series_options import OwnServerOptions, SeriesOptions
from anyecho.measure.series_text import series_lines
from tests.measure.results import document, load, result
from tests.measure.schema import PATH

OPTIONS = BenchOptions(requests=10, warmup=0.0)


def plan(address: str | None = None, server: OwnServerOptions | None = None, **options: Any) -> Plan:
    own = OwnServerOptions() if server is None else server
    return plan_of(address, OPTIONS, SeriesOptions(**options), own, backend="asyncio")


@dataclass
class FakeServer:
    """A server that is never started; `ended` is why it ended during the run."""

    options: OwnServerOptions
    ended: str = ""
    address: str = "tcp://127.0.0.1:1"

    def cpu_ns(self) -> int:
        return 0

    def failure(self) -> str:
        return self.ended


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The outcome of starting a server, by its backend: an exception, or why it ends later."""
    outcomes: dict[str, Any] = {}

    @asynccontextmanager
    async def open_fake(options: OwnServerOptions, **_: Any) -> AsyncIterator[FakeServer]:
        outcome = outcomes.get(options.server_backend, "")
        if isinstance(outcome, Exception):
            raise outcome
        yield FakeServer(options, outcome)

    monkeypatch.setattr(series, "open_own_server", open_fake)
    return outcomes


async def measured(
    plan: Plan,
    outcome: Callable[[int], RunResult] = lambda number: result(),
    on_run: Callable[[int, BenchControl], None] = lambda number, control: None,
) -> list[RunResult]:
    """Run `plan`; the result of run n is ``outcome(n)``, with the load that was asked for."""
    results: list[RunResult] = []
    control = BenchControl()

    async def measure(address: str, options: BenchOptions, control: BenchControl) -> RunResult:
        on_run(len(results), control)
        run = outcome(len(results))
        asked = load(address=address, connections=options.connections, size=options.size, rate=options.rate)
        return replace(run, load=asked, generator=replace(run.generator, backend="asyncio"))

    await run_plan(plan, measure, control, lambda cell, run: results.append(run))
    return results


def check_json(results: list[RunResult]) -> None:
    """Check that the JSON of `results` is valid, and read again without a loss."""
    text = document(*results).to_json()
    Draft202012Validator(json.loads(PATH.read_text())).validate(json.loads(text))
    assert Document.from_json(text) == document(*results)


def names(results: list[RunResult]) -> list[tuple[int | None, str]]:
    return [(run.round, run.load.server_backend) for run in results]


def test_each_second_round_has_the_reverse_order() -> None:
    cells = [Cell(options=OPTIONS, server=OwnServerOptions(), backend=name) for name in "abc"]
    assert "".join(cell.backend for _, cell in in_rounds(cells, 3)) == "abccbaabc"
    assert [number for number, _ in in_rounds(cells, 2)] == [0, 0, 0, 1, 1, 1]


def test_a_sweep_has_each_combination() -> None:
    cells = plan(connections=[1, 10], size=[64, 1024, 65536], rate=[None, 100.0]).cells
    loads = {(each.options.connections, each.options.size, each.options.rate) for each in cells}
    assert len(cells) == len(loads) == 12


@pytest.mark.parametrize("uvloop", [True, False])
def test_the_matrix_has_each_installed_backend_and_engine_in_7_rounds(
    uvloop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "find_spec", lambda name: name if name != "uvloop" or uvloop else None)
    found = plan(matrix=True)
    servers = [(cell.server.server_backend, cell.server.server_engine) for cell in found.cells]
    backends = ["asyncio", *["uvloop"] * uvloop, "trio"]
    assert servers == [(backend, engine) for backend in backends for engine in ("events", "tasks")]
    assert found.rounds == 7
    assert plan(matrix=True, repeat=3).rounds == 3


def test_the_matrix_over_udp_has_each_backend_once() -> None:
    cells = plan(server=OwnServerOptions(carrier="udp"), matrix=True).cells
    assert len({cell.server.server_backend for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    ("address", "server", "options", "text"),
    [
        ("tcp://127.0.0.1:1", {}, {"matrix": True}, "matrix starts its own servers"),
        ("nonsense", {}, {}, "nonsense"),
        (None, {"server_engine": "tasks"}, {"matrix": True}, "matrix compares every server"),
        (None, {}, {"rate": [100.0, 0.0]}, "rate must be more than 0"),
        (None, {}, {"connections": [1, 0]}, "connections must be 1 or more"),
        (None, {}, {"size": []}, "size must have a value"),
        (None, {}, {"repeat": 0}, "repeat must be 1 or more"),
        (None, {}, {"find_rate": "p99<1ms", "repeat": 2}, "find_rate excludes"),
        (None, {}, {"find_rate": "p99<1ms", "size": [1, 2]}, "find_rate excludes"),
        (None, {}, {"find_rate": "p99<1ms", "matrix": True}, "find_rate excludes"),
        (None, {}, {"find_rate": "fast"}, "'fast' is not a condition"),
        (None, {"carrier": "sctp"}, {}, "carrier must be tcp, tls, unix or udp, not 'sctp'"),
    ],
)
def test_a_wrong_series_is_a_usage_error(
    address: str | None, server: dict[str, Any], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        plan(address, OwnServerOptions(**server), **options)


async def test_the_runs_of_one_server_are_one_configuration(servers: dict[str, Any]) -> None:
    runs = await measured(plan(repeat=4))
    assert [run.round for run in runs] == [0, 1, 2, 3]
    assert {run.load.address for run in runs} == {"tcp://127.0.0.1:0"}
    assert "median" in series_lines(document(*runs))[3]


async def test_a_single_run_has_no_round(servers: dict[str, Any]) -> None:
    [run] = await measured(plan())
    assert run.round is None
    assert (run.load.server_backend, run.load.server_engine) == ("asyncio", "auto")
    assert run.notes


async def test_a_server_that_does_not_start_ends_its_cell_only(servers: dict[str, Any]) -> None:
    servers["trio"] = StartError("cannot start a server: no trio")
    runs = await measured(plan(matrix=True, repeat=4))
    failed = [run for run in runs if run.error]
    assert [(run.load.server_engine, run.round, run.error) for run in failed] == [
        ("events", 0, "cannot start a server: no trio"),
        ("tasks", 0, "cannot start a server: no trio"),
    ]
    others = [name for name in names(runs) if name[1] != "trio"]
    assert len(others) == len(set(others)) * 2 == (len({cell.server.server_backend for cell in PLANNED}) - 1) * 8
    check_json(runs)
    lines = series_lines(document(*runs))
    assert [line for line in lines if line.endswith("  failed: cannot start a server: no trio")]
    assert any(line.startswith("ratio to asyncio server, events engine") for line in lines)


PLANNED = plan(matrix=True).cells


async def test_a_server_that_ends_during_a_run_is_the_error_of_it(servers: dict[str, Any]) -> None:
    servers["asyncio"] = "the server ended with status -9"
    [run] = await measured(plan())
    assert run.error == "the server ended with status -9"


async def test_a_refused_connection_names_the_end_of_the_server(servers: dict[str, Any]) -> None:
    servers["asyncio"] = "the server ended with status 3: no memory"

    def refuse(number: int) -> RunResult:
        raise ConnectError("refused")

    with pytest.raises(ConnectError, match="the server ended with status 3: no memory"):
        await measured(plan(), refuse)


@pytest.mark.parametrize("address", [None, "tcp://127.0.0.1:1"])
async def test_the_error_of_a_single_run_is_raised(address: str | None, servers: dict[str, Any]) -> None:
    def refuse(number: int) -> RunResult:
        raise ConnectError("refused")

    with pytest.raises(ConnectError):
        await measured(plan(address), refuse)


async def test_an_address_that_refuses_at_first_is_an_error_and_later_a_failed_cell() -> None:
    def refuse(since: int) -> Callable[[int], RunResult]:
        def outcome(number: int) -> RunResult:
            if number >= since:
                raise ConnectError("refused")
            return result()

        return outcome

    series = plan("tcp://127.0.0.1:1", connections=[1, 2], repeat=2)
    with pytest.raises(ConnectError):
        await measured(series, refuse(0))
    runs = await measured(series, refuse(1))
    assert [(run.load.connections, run.round, run.error) for run in runs] == [
        (1, 0, ""),
        (2, 0, "refused"),
        (1, 1, "refused"),
    ]


async def test_an_interrupt_keeps_the_results_and_marks_the_last(servers: dict[str, Any]) -> None:
    def interrupt(number: int, control: BenchControl) -> None:
        if number == 2:
            control.interrupt()

    runs = await measured(plan(repeat=5), on_run=interrupt)
    assert [run.interrupted for run in runs] == [False, False, False, True]
    assert [run.round for run in runs] == [0, 1, 2, 2]
    assert runs[-1].error == "interrupted"
    check_json(runs)


async def test_an_interrupt_before_the_server_accepts_is_a_marked_result() -> None:
    control, results = BenchControl(), list[RunResult]()
    control.interrupt()

    async def measure(address: str, options: BenchOptions, control: BenchControl) -> RunResult:
        raise AssertionError("the load ran after the interrupt")

    await run_plan(plan(), measure, control, lambda cell, run: results.append(run))
    [run] = results
    assert (run.interrupted, run.counts.sent) == (True, 0)


async def test_a_search_has_a_run_per_step_with_its_verdict(servers: dict[str, Any]) -> None:
    runs = await measured(plan(find_rate="p99<1us", rate=[2.0]))
    assert [run.load.rate for run in runs] == [2.0, 1.0]
    assert all(run.notes[-1].startswith("p99<1us: does not hold: ") for run in runs)


@pytest.mark.by_turns("anyio_backend")
async def test_own_servers_are_measured_in_a_series() -> None:
    runs: list[RunResult] = []

    async def measure(address: str, options: BenchOptions, control: BenchControl) -> RunResult:
        return await run_bench(address, options, backend="asyncio", control=control)

    found = plan(size=[1, 100_000], server=OwnServerOptions(carrier="unix", server_engine="tasks"))
    await run_plan(found, measure, BenchControl(), lambda cell, run: runs.append(run))
    assert [(run.load.size, run.counts.verified) for run in runs] == [(1, 10), (100_000, 10)]
    assert {run.load.address for run in runs} == {found.cells[0].shown_address}
    assert {(run.load.server_backend, run.load.server_engine) for run in runs} == {("asyncio", "tasks")}
