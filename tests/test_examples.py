"""The examples: clients with mistakes and mended ones, in a pytest of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.machine import needs

EXAMPLES = Path(__file__).parent.parent / "examples"
NEEDED = ("stamina", "pytest_asyncio", "pytest_trio")


@needs(all(map(find_spec, NEEDED)), f"one of {', '.join(NEEDED)}")
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_each_client_fails_as_it_was_and_passes_once_it_is_mended() -> None:
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", str(EXAMPLES)]
    ended = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=150)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = re.findall(r"^(PASSED|XFAIL) (\S+::.*ask)(_before)?\]", ended.stdout, re.MULTILINE)
    mended = {test for result, test, before in results if result == "PASSED" and not before}
    failed_before = {test for result, test, before in results if result == "XFAIL" and before}
    assert mended == failed_before
    assert len(results) == 2 * len(mended) == 14
