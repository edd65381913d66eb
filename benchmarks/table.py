"""Results as Markdown: the targets, a summary table, and a table for each workload."""

from __future__ import annotations

__all__ = ("markdown_table", "render")

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from results import Results
from workloads import WORKLOADS, Column, Workload

#: Workload and figure of each column of the summary.
SUMMARY = (
    ("100x64", "cpu_us_per_echo"),
    ("1000x64", "cpu_us_per_echo"),
    ("100x64", "messages_per_second"),
    ("100x64", "p99_us"),
    ("1x64", "p50_us"),
    ("10x64KiB", "megabytes_per_second"),
    ("1x1MiB", "megabytes_per_second"),
    ("idle", "kib_per_connection"),
    ("accept", "accepts_per_second"),
)

#: The conditions of the measurement.
CONDITIONS = """\
Medians of {rounds} interleaved rounds of {seconds:g} s (least-most). The server is pinned to one core, the load to
{placement}. Every reply is compared. TCP_NODELAY everywhere. anyecho runs as it comes: with all its limits,
counters and socket options, at its default log level. CPU is user and system time of the server's process.
The loop of the load: {load_backend}. Machine: {processor}, {cores} cores, {kernel}, Python {python}, {date}."""


def render(results: Results, verdicts: Sequence[dict[str, Any]]) -> str:
    parts = [CONDITIONS.format(**results.settings, **results.machine)]
    if judged := [verdict for verdict in verdicts if verdict["met"] is not None]:
        parts += ["## Targets", _targets(judged)]
    parts += ["## Summary", _summary(results)]
    for workload in WORKLOADS:
        if workload.name in results.settings["workloads"]:
            parts += [f"## {workload.title}", _of(workload, results)]
    parts += ["## Who took part", "\n".join(_participants(results))]
    return "\n\n".join(parts) + "\n"


def _targets(verdicts: Iterable[dict[str, Any]]) -> str:
    return markdown_table(
        ("figure", "server", "limit", "reached", "rounds", ""),
        (
            (
                f"{verdict['workload']} {verdict['figure']}" + (f" ({verdict['note']})" if verdict["note"] else ""),
                verdict["server"],
                verdict["limit"],
                _brief(verdict["reached"]),
                f"{_brief(verdict['least'])}-{_brief(verdict['most'])}",
                "met" if verdict["met"] else "**missed**",
            )
            for verdict in verdicts
        ),
    )


def _brief(number: float) -> str:
    return f"{number:.0f}" if number >= 1000 else f"{number:.2f}"


def _summary(results: Results) -> str:
    by_name = {workload.name: workload for workload in WORKLOADS}
    chosen = [
        (by_name[name], column)
        for name, key in SUMMARY
        if name in results.settings["workloads"]
        for column in by_name[name].columns
        if column.key == key
    ]
    headings = ["server", *(f"{workload.name}: {column.heading}" for workload, column in chosen)]
    rows = (
        [server.name, *(_cell(results, workload, server.name, column, spread=False) for workload, column in chosen)]
        for server in results.servers
        if not server.absent
    )
    return markdown_table(headings, rows)


def _of(workload: Workload, results: Results) -> str:
    names = [server.name for server in results.servers if not server.absent]
    rows = [
        [name, *(_cell(results, workload, name, column) for column in workload.columns)]
        for name in names
        if workload.takes(name) or workload.why_not(name)
    ]
    notes = [f"\\- {name}: {why}." for name in names if (why := workload.why_not(name))]
    notes += [f"\\- {name}: failed. {why}" for (at, name), why in results.failures.items() if at == workload.name]
    table = markdown_table(["server", *(column.heading for column in workload.columns)], rows)
    return "\n\n".join([table, *notes])


def _cell(results: Results, workload: Workload, server: str, column: Column, *, spread: bool = True) -> str:
    values = [value / column.unit for value in results.of(workload.name, server, column.key)]
    if not values:
        return "-"

    middle = f"{statistics.median(values):.{column.digits}f}"
    if not spread or len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{column.digits}f}-{max(values):.{column.digits}f})"


def _participants(results: Results) -> Iterator[str]:
    for server in results.servers:
        yield f"* {server.name}: {f'absent, {server.absent}' if server.absent else server.version}"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
