"""Every promise of SECURITY.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_every_promise_names_tests_that_exist() -> None:
    modules = [path for path in (ROOT / "tests").rglob("*.py") if path.stem != Path(__file__).stem]
    there = {path.stem for path in modules}
    for path in modules:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        there |= {node.name for node in ast.walk(tree) if isinstance(node, functions)}

    named = set(re.findall(r"`(test_\w+)`", DOCUMENT))
    assert len(named) > 40
    assert not named - there


def test_no_promise_is_without_a_test() -> None:
    promises = DOCUMENT.partition("## What is promised")[2].partition("## What is left")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert rows
    assert not [row for row in rows if "`test_" not in row.split("|")[2]]
