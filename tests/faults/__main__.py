"""Inject every fault of the table; print the table with what was observed.

::

    python -m tests.faults [--backend asyncio] [--row 5] [--fallback]

The table is Markdown. Exits 1 if a requirement is not met; the table shows it. Scenarios that need a network
namespace are marked as not run where none can be created.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Sequence

import pytest

from anyecho.backends import BACKENDS, Backend
from tests.faults.runner import SCENARIOS, format_observed, inject
from tests.faults.table import EXCUSED, ROWS, Scenario
from tests.support.without_epoll import remove_epoll


def observe(scenario: Scenario, backend: Backend) -> tuple[bool, str]:
    """Return whether the requirement was met, and what was observed."""
    try:
        return True, format_observed(inject(scenario, backend))
    except pytest.skip.Exception as exc:
        return True, f"not run here: {exc}"
    except Exception:
        traceback.print_exc()
        return False, "**broken**"


def print_table(numbers: Sequence[int], backends: Sequence[Backend]) -> bool:
    """Print the rows of these numbers; return whether every requirement was met."""
    print("| # | fault | required | injected | observed |")
    print("|---|---|---|---|---|")
    kept = True
    for number in numbers:
        row = ROWS[number]
        start = f"| {number} | {row.fault} | {row.required} |"
        if number in EXCUSED:
            print(f"{start} | excused: {EXCUSED[number]} |")
        for scenario in SCENARIOS:
            if scenario.number == number:
                results = {backend: observe(scenario, backend) for backend in backends}
                kept = kept and all(good for good, _ in results.values())
                texts = "<br>".join(f"*{backend}* {text}" for backend, (_, text) in results.items())
                print(f"{start} {scenario.injected} | {texts} |", flush=True)

    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description="Inject every fault of the table.")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="repeatable; by default, all")
    parser.add_argument("--row", action="append", type=int, choices=ROWS, help="repeatable; by default, all")
    parser.add_argument("--fallback", action="store_true", help="without epoll, as on a system that has none")
    parser.add_argument(
        "--alone", help="print the observations of one scenario as JSON; it needs its own network namespace"
    )
    wanted = parser.parse_args()
    if wanted.fallback:
        remove_epoll()
    backends = wanted.backend or BACKENDS
    if wanted.alone is None:
        return 0 if print_table(wanted.row or list(ROWS), backends) else 1

    [scenario] = [each for each in SCENARIOS if each.name == wanted.alone]
    json.dump(inject(scenario, backends[0], alone=True), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
