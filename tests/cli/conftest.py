"""Fixtures of the command line."""

from __future__ import annotations

import pytest

from tests.support.machine import skip


@pytest.fixture(params=["events", "tasks"])
def engine(request: pytest.FixtureRequest) -> str:
    """The value of ``--engine``."""
    if request.param == "events" and request.config.getoption("--fallback"):
        skip("epoll")
    word: str = request.param
    return word
