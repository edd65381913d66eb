"""Run each case of a test on one value of an axis only, the next case on the next value.

``@pytest.mark.by_turns(*axes)`` names axes that do not affect the tested behaviour: socket options are the same on
every backend, and so are the bytes that a parser refuses. Every value of an axis still has its turn.
``--by-turns`` does this with every axis of every test, ``--by-turns-of`` with one, for secondary runs of the suite.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import pytest

from anyecho.net.poller import has_epoll

#: Parameters that multiply a test without changing the behaviour it tests.
AXES = ("anyio_backend", "backend", "word", "engine", "carrier", "kind", "system_calls", "readiness")

#: A case: the parameters that are no axis, with the identity of each value. All tests of a case share the values.
Case = frozenset[tuple[str, int]]


def out_of_turn(items: list[pytest.Item], axes: Collection[str]) -> set[pytest.Item]:
    """Return the tests that are not run, because another test of the same case has the turn.

    `axes` are taken by turns in every test, besides those of its mark.
    """
    functions: dict[str, dict[Case, list[pytest.Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        by_turns = _axes(item, params).union(axes)
        if by_turns.intersection(params):
            case = frozenset((name, id(value)) for name, value in params.items() if name not in by_turns)
            functions[item.nodeid.partition("[")[0]][case].append(item)

    dropped: set[pytest.Item] = set()
    for cases in functions.values():
        for number, tests in enumerate(cases.values()):
            able = [item for item in tests if _can_run(item)] or tests
            # Shift by one after each round: else a parameter of three values would always meet the same backend.
            turn = (number + number // len(able)) % len(able)
            dropped.update(item for item in tests if item is not able[turn])

    return dropped


def _axes(item: pytest.Item, params: dict[str, object]) -> set[str]:
    mark = item.get_closest_marker("by_turns")
    axes: set[str] = set(mark.args) if mark else set()
    if unknown := axes - set(params):
        raise pytest.UsageError(f"{item.nodeid}: by_turns names {unknown}, which the test does not have")

    return axes


def _can_run(item: pytest.Item) -> bool:
    assert isinstance(item, pytest.Function)
    return item.callspec.params.get("engine") != "events" or has_epoll()
