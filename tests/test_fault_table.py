"""The fault table has a test for every row, and says so if not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.fault_table import ROWS
from tests.support.process import TIMEOUT

ROOT = Path(__file__).parent.parent
EXAMPLE = """
import pytest

@pytest.mark.fault(row=25, injected="a mistake")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_example(backend):
    assert backend == "asyncio"
"""


def test_every_row_has_a_test() -> None:
    sources = [
        path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)
    ]
    marks = re.findall(r"^@pytest\.mark\.fault\(\s*row=(\d+)", "\n".join(sources), re.MULTILINE)
    assert sorted(map(int, set(marks))) == list(ROWS)


def test_a_failure_and_a_row_without_a_test_on_a_backend_are_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "test_example.py").write_text(EXAMPLE)
    plugins = ("-p", "tests.support.fault_table", "-p", "no:cacheprovider", "-W", "ignore")
    table = ("--fault-table", "--row", "25", "--row", "28")
    command = [sys.executable, "-m", "pytest", *plugins, *table, "--rootdir", str(tmp_path), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, timeout=TIMEOUT, text=True, cwd=ROOT)
    assert ended.returncode == 1
    assert "| a mistake | `test_example` | asyncio: passed (1)<br>trio: **failed** (1) |" in ended.stdout
    assert "\nrow 25 has no test on uvloop\nrow 28 has no test on asyncio, trio, uvloop\n" in ended.stdout
