"""Targets of anyecho: a figure of one server against a number or the figure of another server."""

from __future__ import annotations

__all__ = ("TARGETS", "Target", "judge")

import statistics
from dataclasses import dataclass
from typing import Any

from results import Results

BACKENDS = ("asyncio", "uvloop", "trio")
ENGINES = ("events", "tasks")


@dataclass(frozen=True, kw_only=True)
class Target:
    """`key` of `server` under `workload`, divided by that of `reference` if there is one."""

    workload: str
    key: str
    server: str
    reference: str = ""
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def limit(self) -> str:
        text = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        return f"{text} x {self.reference}" if self.reference else text


def judge(target: Target, results: Results) -> dict[str, Any]:
    """Return the target and what was reached: the quotient of the medians, and the extremes of single rounds.

    "met" is None if one of the two servers was not measured.
    """
    verdict = {
        "workload": target.workload,
        "figure": target.key,
        "server": target.server,
        "limit": target.limit,
        "note": target.note,
    }
    ours = results.of(target.workload, target.server, target.key)
    theirs = results.of(target.workload, target.reference, target.key) if target.reference else [1.0] * len(ours)
    if not ours or not theirs:
        return verdict | {"reached": None, "least": None, "most": None, "met": None}

    reached = statistics.median(ours) / statistics.median(theirs)
    rounds = [mine / other for mine, other in zip(ours, theirs, strict=False)]
    met = (target.at_most is None or reached <= target.at_most) and (
        target.at_least is None or reached >= target.at_least
    )
    return verdict | {"reached": reached, "least": min(rounds), "most": max(rounds), "met": met}


def _cpu(workload: str, server: str, reference: str, at_most: float, note: str = "") -> Target:
    return Target(
        workload=workload, key="cpu_us_per_echo", server=server, reference=reference, at_most=at_most, note=note
    )


def _events(backend: str) -> list[Target]:
    server = f"anyecho-events-{backend}"
    return [
        *(
            _cpu("100x64", server, other, most)
            for other, most in (("c-epoll", 1.15), ("uvloop-protocol", 1), ("go", 1))
        ),
        _cpu("1000x64", server, "c-epoll", 1.25),
        *(
            Target(workload=workload, key="megabytes_per_second", server=server, reference="c-epoll", at_least=0.92)
            for workload in ("10x64KiB", "1x1MiB")
        ),
        Target(workload="idle", key="kib_per_connection", server=server, at_most=0.5),
        Target(workload="accept", key="accepts_per_second", server=server, at_least=30_000),
        Target(
            workload="accept", key="accepts_per_second", server=server, reference=f"anyio-{backend}", at_least=5
        ),
        Target(workload="100x64", key="p99_us", server=server, reference="uvloop-protocol", at_most=1.1),
        Target(workload="1x64", key="p50_us", server=server, reference="uvloop-protocol", at_most=1.1),
    ]


def _tasks(backend: str, of_anyio: float) -> list[Target]:
    server = f"anyecho-tasks-{backend}"
    return [
        _cpu("100x64", server, f"anyio-{backend}", of_anyio),
        Target(workload="idle", key="kib_per_connection", server=server, at_most=7),
    ]


TARGETS = (
    *(target for backend in BACKENDS for target in _events(backend)),
    *(
        target
        for backend, most in zip(BACKENDS, (0.45, 0.75, 1.0), strict=True)
        for target in _tasks(backend, most)
    ),
    _cpu("100x64", "anyecho-tasks-asyncio", "asyncio-streams", 1.05),
    _cpu("100x64", "anyecho-tasks-uvloop", "asyncio-streams", 1.05),
    _cpu("100x64", "anyecho-tasks-uvloop", "uvloop-streams", 1.05, note="the stricter reading"),
    *(
        Target(workload="fairness", key=key, server=f"anyecho-{engine}-{backend}", at_most=3)
        for key in ("flood_ratio", "deaf_ratio")
        for engine in ENGINES
        for backend in BACKENDS
    ),
)
