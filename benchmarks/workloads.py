"""The workloads: their measurements, the columns of their tables, and the servers left out."""

from __future__ import annotations

__all__ = ("QUICK", "WORKLOADS", "Column", "Workload")

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from accepting import measure_accepting, measure_idle
from anyecho.backends import Backend
from echoes import Figures, measure_echoes, measure_fairness
from process import Running

Measure: TypeAlias = Callable[[Running, float, Backend], Figures]


@dataclass(frozen=True, kw_only=True)
class Column:
    key: str
    heading: str
    #: Divisor of the figure for the table, and its number of decimals.
    unit: float = 1
    digits: int = 1


@dataclass(frozen=True, kw_only=True)
class Workload:
    name: str
    title: str
    measure: Measure
    columns: tuple[Column, ...]
    #: Maximum number of rounds, for figures that hardly vary.
    most_rounds: int = 1000
    #: Prefixes of the server names that take part (none: all), and servers left out, with the reason.
    only: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    def takes(self, server: str) -> bool:
        return server.startswith(self.only or "") and not self.why_not(server)

    def why_not(self, server: str) -> str:
        return dict(self.left_out).get(server, "")


_CPU = Column(key="cpu_us_per_echo", heading="CPU us/echo", digits=2)
_RATE = Column(key="messages_per_second", heading="thousand msg/s", unit=1e3)
_THROUGHPUT = Column(key="megabytes_per_second", heading="MB/s", digits=0)
_P50 = Column(key="p50_us", heading="p50 us", digits=0)
_P99 = Column(key="p99_us", heading="p99 us", digits=0)
_FORKS = (("socat", "a process for each connection"),)


def _echoes(name: str, title: str, *columns: Column, connections: int, size: int) -> Workload:
    return Workload(
        name=name,
        title=title,
        measure=partial(measure_echoes, connections=connections, size=size),
        columns=(_RATE, _THROUGHPUT, _P50, _P99, _CPU),
        left_out=_FORKS if connections > 100 else (),
    )


WORKLOADS = (
    _echoes("1x64", "1 connection x 64 B", connections=1, size=64),
    _echoes("100x64", "100 connections x 64 B", connections=100, size=64),
    _echoes("1000x64", "1000 connections x 64 B", connections=1000, size=64),
    _echoes("100x1KiB", "100 connections x 1 KiB", connections=100, size=1024),
    _echoes("10x64KiB", "10 connections x 64 KiB", connections=10, size=64 * 1024),
    _echoes("1x1MiB", "1 connection x 1 MiB", connections=1, size=1024 * 1024),
    Workload(
        name="idle",
        title="9000 idle connections",
        measure=measure_idle,
        columns=(
            Column(key="kib_per_connection", heading="KiB per connection", digits=2),
            Column(key="wakeups_per_second", heading="wake-ups/s"),
            Column(key="cpu_percent", heading="% of a core", digits=2),
        ),
        most_rounds=3,
        left_out=_FORKS,
    ),
    Workload(
        name="accept",
        title="Accepting bursts of 2000",
        measure=measure_accepting,
        columns=(
            Column(key="accepts_per_second", heading="thousand accepted/s", unit=1e3),
            Column(key="cpu_us_per_accept", heading="CPU us/accept"),
        ),
        left_out=_FORKS,
    ),
    Workload(
        name="fairness",
        title="99 connections x 64 B beside one",
        measure=measure_fairness,
        columns=(
            Column(key="alone_p99_us", heading="alone: p99 us", digits=0),
            Column(key="flood_p99_us", heading="beside one that floods: p99 us", digits=0),
            Column(key="flood_ratio", heading="ratio", digits=2),
            Column(key="deaf_p99_us", heading="beside one that never reads: p99 us", digits=0),
            Column(key="deaf_ratio", heading="ratio", digits=2),
        ),
        only=("anyecho-", "c-epoll"),
    ),
)

#: The workloads of ``--quick``.
QUICK = ("1x64", "100x64", "10x64KiB", "accept")
