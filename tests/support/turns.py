"""Run each case of a test on one value of an axis only, the next case on the next value.

``@pytest.mark.by_turns(*axes)`` names axes that do not affect the tested behaviour: socket options are the same on
every backend, and so are the bytes that a parser refuses. Every value of an axis still has its turn. A test of
each backend takes the carrier by turns without a mark: both carriers still meet every backend and every engine.
``--by-turns`` does this with every axis of every test, ``--by-turns-of`` with one, for secondary runs of the suite.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from zlib import crc32

import pytest

from anyecho.net.poller import has_epoll

#: Parameters that multiply a test without changing the behaviour it tests.
AXES = ("anyio_backend", "backend", "engine", "carrier", "kind", "system_calls", "readiness")
BACKEND_AXES = {"anyio_backend", "backend"}

#: Parameters, each with the identity of its value. The tests of a case share those that do not take turns.
Values = frozenset[tuple[str, int]]


def out_of_turn(items: list[pytest.Item], axes: Collection[str]) -> set[pytest.Item]:
    """Return the tests that are not run, because another test of the same case has the turn.

    `axes` are taken by turns in every test, besides those of its mark.
    """
    functions: dict[str, dict[Values, list[pytest.Function]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        by_turns = _axes(item, params, axes)
        if isinstance(item, pytest.Function) and by_turns:
            case = frozenset((name, id(value)) for name, value in params.items() if name not in by_turns)
            functions[item.nodeid.partition("[")[0]][case].append(item)

    dropped: set[pytest.Item] = set()
    for name, cases in functions.items():
        # Functions with one case begin at different values too.
        first = crc32(name.encode())
        others: dict[Values, int] = {}
        for case, tests in cases.items():
            able = [item for item in tests if _can_run(item)] or tests
            number = others.setdefault(frozenset(each for each in case if each[0] not in AXES), len(others))
            # Shift by one after each round: else a parameter of three values would always meet the same backend.
            turn = first + number + number // len(able) + _place(tests[0], case)
            dropped.update(item for item in tests if item is not able[turn % len(able)])

    return dropped


def _place(item: pytest.Function, case: Values) -> int:
    """Return the sum of the places of the axes of `case`: so each pair of values of two axes has its turn."""
    return sum(item.callspec.indices[name] for name, _ in case if name in AXES)


def _axes(item: pytest.Item, params: dict[str, object], named: Collection[str]) -> set[str]:
    axes = set(named)
    for node, mark in item.iter_markers_with_node("by_turns"):
        axes.update(mark.args)
        if node is item and (unknown := {*mark.args} - params.keys()):
            raise pytest.UsageError(f"{item.nodeid}: by_turns names {unknown}, which the test does not have")

    if not axes.issuperset(params.keys() & BACKEND_AXES):
        axes.add("carrier")
    return axes.intersection(params)


def _can_run(item: pytest.Function) -> bool:
    return item.callspec.params.get("engine") != "events" or has_epoll()
