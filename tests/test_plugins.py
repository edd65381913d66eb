"""The plugins of the suite: the fault table has a test for every row, and unexplained skips fail a run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def run(directory: Path, example: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a test file with the plugins and `arguments`, outside the suite and without the plugins of others."""
    (directory / "test_example.py").write_text(example)
    plugins = ("-p", "tests.support.fault_table", "-p", "tests.support.strict_skips", "-p", "no:cacheprovider")
    environ = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        *plugins,
        "-W",
        "ignore",
        "--rootdir",
        str(directory),
        str(directory),
    ]
    return subprocess.run(
        [*command, *arguments], capture_output=True, timeout=TIMEOUT, text=True, cwd=ROOT, env=environ
    )


def test_a_failure_and_a_row_without_a_test_on_a_backend_are_in_the_table(tmp_path: Path) -> None:
    ended = run(tmp_path, EXAMPLE, "--fault-table", "--row", "25", "--row", "28")
    assert ended.returncode == 1
    assert "| a mistake | `test_example` | asyncio: passed (1)<br>trio: **failed** (1) |" in ended.stdout
    assert "\nrow 25 has no test on uvloop\nrow 28 has no test on asyncio, trio, uvloop\n" in ended.stdout


@pytest.mark.parametrize(("reason", "status"), [("not on this machine: tea", 0), ("not now", 1)])
def test_a_skip_that_the_machine_does_not_explain_fails_a_strict_run(
    reason: str, status: int, tmp_path: Path
) -> None:
    ended = run(tmp_path, f"import pytest\n\ndef test_example():\n    pytest.skip({reason!r})\n", "--strict-skips")
    assert ended.returncode == status, ended.stdout
    assert (f"test_example: {reason}" in ended.stdout) is bool(status)
