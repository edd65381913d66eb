"""Event loops with a clock of their own: a sleep takes no time, and ends exactly when it is due."""

from __future__ import annotations

__all__ = ("virtual_backend",)

import asyncio
import math
import selectors
from typing import Any

import pytest
from trio.testing import MockClock


class VirtualLoop(asyncio.SelectorEventLoop):
    """Whenever it would wait, its clock jumps to the next timer instead."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0 if timeout is not None else None)
        if timeout and not ready:
            # Rounding may have made the difference to the clock 0.
            self._loop.now = max(self._loop.now + timeout, math.nextafter(self._loop.now, math.inf))
        return ready


@pytest.fixture(params=["asyncio", "trio"])
def virtual_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """For ``anyio_backend = virtual_backend`` in a module of tests: each test has a new clock."""
    if request.param == "trio":
        return "trio", {"clock": MockClock(autojump_threshold=0)}

    return "asyncio", {"loop_factory": VirtualLoop}
