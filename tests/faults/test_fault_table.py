"""Every row of the fault table, injected; ``python -m tests.faults`` prints the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from anyecho.backends import BACKENDS, Backend
from tests.faults.runner import SCENARIOS, format_observed, inject
from tests.faults.table import EXCUSED, ROWS, Scenario

#: The rows that apply to a server of one process.
NUMBERS = [*range(1, 14), *range(17, 27), 28]


@pytest.mark.parametrize("word", BACKENDS)
@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(each, id=f"{each.number}-{each.name}", marks=[pytest.mark.slow] if each.slow else [])
        for each in SCENARIOS
    ],
)
def test_a_fault_is_handled_as_required(
    scenario: Scenario, word: Backend, record_property: Callable[[str, Any], None]
) -> None:
    row = ROWS[scenario.number]
    observed = format_observed(inject(scenario, word))
    for name, value in {
        "row": scenario.number,
        "fault": row.fault,
        "required": row.required,
        "injected": scenario.injected,
        "observed": observed,
    }.items():
        record_property(name, value)
        print(f"{name}: {value}")


def test_every_row_is_injected_or_excused_with_a_reason() -> None:
    injected = {scenario.number for scenario in SCENARIOS}
    assert sorted(injected | EXCUSED.keys()) == sorted(ROWS) == NUMBERS
    assert injected.isdisjoint(EXCUSED)
    assert len(EXCUSED) <= 2
    assert all(EXCUSED.values())


def test_names_and_descriptions_of_scenarios_are_unique() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
    assert len({scenario.injected for scenario in SCENARIOS}) == len(SCENARIOS)
