"""Fixtures of the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from anyecho.cli.main import main
from tests.support.machine import skip

#: Returns exit status, standard output and standard error.
Run: TypeAlias = Callable[..., tuple[int, bytes, str]]


@pytest.fixture(params=["events", "tasks"])
def engine(request: pytest.FixtureRequest) -> str:
    """The value of ``--engine``."""
    if request.param == "events" and request.config.getoption("--fallback"):
        skip("epoll")
    word: str = request.param
    return word


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line as `Processes.run` does, but in this process: a start of Python would take 0.4 s."""

    def run(*arguments: str) -> tuple[int, bytes, str]:
        status = main(arguments)
        output, errors = capfd.readouterr()
        return status, output.encode(), errors

    return run
