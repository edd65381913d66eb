"""Run a load in a test."""

from __future__ import annotations

__all__ = ("load",)

from typing import Any

from anyio import fail_after

from anyecho.client.options import ConnectOptions
from anyecho.measure.bench import run_bench
from anyecho.measure.options import BenchOptions
from anyecho.measure.result import RunResult
from anyecho.net.sockets import SocketOptions


async def load(address: Any, *, timeout: float | None = 5.0, **options: Any) -> RunResult:
    """Run a load without warm-up."""
    connect = ConnectOptions(timeout=timeout, socket=options.pop("socket", SocketOptions()))
    control, exclusive = options.pop("control", None), options.pop("exclusive", False)
    given: dict[str, Any] = {"warmup": 0.0, "connect": connect} | options
    with fail_after(40):
        return await run_bench(address, BenchOptions(**given), control=control, exclusive=exclusive)
