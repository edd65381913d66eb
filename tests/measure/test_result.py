"""Results survive their JSON; a damaged file is one line."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from anyecho.errors import InternalError, UsageError
from anyecho.measure.histogram import Histogram
from anyecho.measure.omission import Stall
from anyecho.measure.result import Counts, Document, Spread, Steadiness
from anyecho.measure.text import describe_load
from tests.measure.results import document, load, result
from tests.measure.schema import PATH, schema_text

NOTHING = Histogram.from_samples([])
#: A result for each way in which a run ends, on each carrier.
CASES = {
    "open loop": result(),
    "closed loop": result(load=load(rate=None, requests=3000, duration=None, timeout=None), lag=NOTHING),
    "one connection": result(load=load(connections=1), spread=None, server_cpu_per_echo=None),
    "long": result(seconds=12),
    "udp": result(
        load=load(address="udp://127.0.0.1:7", transport="udp"),
        counts=Counts(sent=10, verified=7, wrong=1, lost=2, late=1, duplicates=3, reordered=2),
    ),
    "interrupted": result(
        counts=Counts(sent=3, verified=1, wrong=0, lost=0, outstanding=2), interrupted=True, error="interrupted"
    ),
    "failed": result(
        counts=Counts(sent=0, verified=0, wrong=0, lost=0, connect_failed=2),
        latency=NOTHING,
        uncorrected=NOTHING,
        lag=NOTHING,
        per_second=(),
        spread=None,
        error="connection refused",
        notes=("no connection", "of two"),
    ),
    "saturated": result(saturated=True),
    "stall": result(load=load(rate=None), lag=NOTHING, stall=Stall(longest=1.0, unsent=5000, p99=0.9)),
    "shard": result(load=load(shard_index=1, shard_count=3), round=2),
}


@pytest.mark.parametrize("case", CASES)
def test_a_document_survives_its_json(case: str) -> None:
    whole = document(CASES[case], result(2))
    text = whole.to_json()

    assert Document.from_json(text) == whole
    assert Document.from_json(text).to_json() == text
    assert json.loads(text)["schema"] == 1


def test_the_schema_in_the_package_is_that_of_the_dataclasses() -> None:
    assert PATH.read_text() == schema_text(), "run python -m tests.measure.schema"
    Draft202012Validator.check_schema(json.loads(schema_text()))


@pytest.mark.parametrize("case", CASES)
def test_a_document_is_valid_in_its_schema(case: str) -> None:
    validator = Draft202012Validator(json.loads(PATH.read_text()))
    value = json.loads(document(CASES[case], result(2)).to_json())
    assert [*validator.iter_errors(value)] == []

    del value["runs"][0]["counts"]["lost"]
    value["runs"][1]["latency"]["min"] = -1
    assert sorted(error.json_path for error in validator.iter_errors(value)) == [
        "$.runs[0].counts",
        "$.runs[1].latency.min",
    ]


def test_a_later_field_is_ignored_and_a_missing_one_takes_its_default() -> None:
    value = json.loads(document().to_json())
    value["runs"][0]["counts"]["teleported"] = 3
    del value["machine"], value["runs"][0]["notes"]
    read = Document.from_json(json.dumps(value))

    assert (read.machine.cores, read.runs) == (0, document().runs)


@pytest.mark.parametrize("end", range(0, 2000, 171))
def test_a_file_cut_anywhere_is_one_line(end: int) -> None:
    with pytest.raises(UsageError, match=r"^a\.json is not complete JSON: it was cut or is no result \(.*\)$"):
        Document.from_json(document().to_json()[:end], "a.json")


def edited(**changes: Any) -> str:
    value = json.loads(document().to_json())
    for path, new in changes.items():
        *parents, last = path.split("__")
        place = value
        for key in parents:
            place = place[0][key] if isinstance(place, list) else place[key]
        if new is ...:
            del place[last]
        else:
            place[last] = new

    return json.dumps(value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[]", "a.json is JSON, but no result of anyecho"),
        ("{}", "a.json is JSON, but no result of anyecho"),
        (edited(schema=2), "a.json is of version 2 of the schema, and this program reads 1 only"),
        (edited(schema="1"), "a.json is of version '1' of the schema, and this program reads 1 only"),
        (edited(version=...), "a.json is damaged: version is missing"),
        (edited(command="x"), "a.json is damaged: command is 'x', which does not belong there"),
        (edited(versions=[]), "a.json is damaged: versions is [], which does not belong there"),
        (
            edited(runs=[{}]),
            "a.json is damaged: runs[0].load is missing",
        ),
        (
            edited(machine__cores=True),
            "a.json is damaged: machine.cores is True, which does not belong there",
        ),
    ],
)
def test_a_damaged_file_is_one_line(text: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        Document.from_json(text, "a.json")

    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (("counts", "verified"), 1),
        (("latency",), {}),
        (("latency", "count"), 5),
        (("latency", "min"), 5),
        (("latency", "max"), "5"),
        (("latency", "hdr"), "HISTFAAA"),
        (("latency", "hdr"), 5),
        (("load", "transport"), "pigeon"),
        (("seconds",), float("nan")),
        (("seconds",), 10**400),
        (("load", "size"), 10**61),
        (("load", "shard_count"), 10**9),
        (("started_at",), 1e12),
        (("spread", "jain"), 0),
        (("counts",), {"sent": -1, "verified": -1, "wrong": 0, "lost": 0}),
        (("seconds",), -1),
        (("load", "rate"), 0),
        (("load", "size"), 0),
        (("load", "shard_count"), 0),
        (("load", "shard_index"), 1),
        (("load", "warm_up"), -0.5),
        (("generator", "clock", "step_ns"), -1),
        (("generator", "gc_pauses"), [0.1, -0.1]),
        (("per_second",), [{"start": 0.0, "verified": 1, "bytes": -64}]),
    ],
    ids=str,
)
def test_a_damaged_run_is_an_error(path: tuple[str, ...], new: object) -> None:
    value = json.loads(document().to_json())
    place = value["runs"][0]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    with pytest.raises(UsageError, match=r"^a\.json is (damaged|not complete JSON): "):
        Document.from_json(json.dumps(value), "a.json")


def test_a_whole_number_is_read_as_a_float_where_one_belongs() -> None:
    value = json.loads(document().to_json())
    value["runs"][0]["load"]["rate"] = 10**30
    value["runs"][0]["seconds"] = 5e-324
    [run] = Document.from_json(json.dumps(value)).runs
    assert (describe_load(run.load, ["rate"]), run.rate) == ("1e+30/s", 0.0)


def test_a_result_with_an_infinite_figure_is_never_written() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        document(result(seconds=1, server_cpu_per_echo=float("inf"))).to_json()


@pytest.mark.parametrize("name", ["sent", "verified", "wrong", "lost", "outstanding"])
def test_counts_that_do_not_add_up_are_an_error(name: str) -> None:
    counts = Counts(sent=10, verified=4, wrong=3, lost=2, outstanding=1)
    with pytest.raises(InternalError, match="messages were sent, but"):
        replace(counts, **{name: 11})


@pytest.mark.parametrize("name", ["late", "duplicates", "reordered", "connect_failed", "from_warm_up"])
def test_counts_beside_the_sum_do_not_enter_it(name: str) -> None:
    counts = Counts(sent=10, verified=4, wrong=3, lost=2, outstanding=1)
    assert getattr(replace(counts, **{name: 11}), name) == 11


def test_the_rate_counts_verified_replies_only() -> None:
    run = result(counts=Counts(sent=3000, verified=1500, wrong=0, lost=1500))
    assert (run.rate, replace(run, seconds=0.0).rate) == (500, 0)


def test_a_spread_needs_two_connections() -> None:
    assert Spread.of([7], [0.1]) is None
    spread = Spread.of([3, 1, 0], [0.2, 0.1])
    assert spread == Spread(messages_min=0, messages_max=3, p50_min=0.1, p50_max=0.2, jain=16 / 30)


def noise(seed: int) -> list[float]:
    draw = random.Random(seed)
    return [100e-6 * draw.lognormvariate(0, 0.1) for _ in range(20)]


def test_a_constant_latency_is_steady_and_a_growing_or_shifted_one_is_not() -> None:
    steady = noise(1)
    growing = [each * (1 + 0.05 * index) for index, each in enumerate(steady)]
    shifted = [each * (2 if index >= 10 else 1) for index, each in enumerate(steady)]

    assert [Steadiness.of(each).steady for each in (steady, growing, shifted)] == [True, False, False]
    assert Steadiness.of(steady[:9]) == Steadiness()


def test_few_steady_runs_are_called_unsteady() -> None:
    assert sum(not Steadiness.of(noise(seed)).steady for seed in range(500)) <= 15
