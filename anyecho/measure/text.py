"""Results as lines of text, for a terminal. Nothing is printed here."""

from __future__ import annotations

__all__ = (
    "common_text",
    "describe_load",
    "differences",
    "document_lines",
    "labels",
    "latency_text",
    "machine_text",
    "percentile_name",
    "run_lines",
)

from collections import Counter
from collections.abc import Iterator, Sequence

from anyecho.measure.checks import checks, duration_text
from anyecho.measure.histogram import Histogram
from anyecho.measure.options import PERCENTILES
from anyecho.measure.parts import part_lines
from anyecho.measure.result import Document, Load, Machine, RunResult
from anyecho.units import counted, format_duration, format_rate, format_size

#: A duration below so many steps of the clock is not printed.
_STEPS = 20
_DESCRIBED = (
    *("address", "server_backend", "server_engine", "connections", "size", "pipeline"),
    *("rate", "arrivals", "duration", "requests", "shard_index"),
)
_EXPLANATION = (
    "corrected: from the due time to the reply; uncorrected: from the send; lag: how late the generator itself was"
)


def percentile_name(percentile: float) -> str:
    return f"p{percentile:.12f}".rstrip("0").rstrip(".")


def latency_text(nanoseconds: int | None, step_ns: int = 0) -> str:
    """Return a latency with 3 digits; "-" if it is not known, or a bound if the clock cannot tell it."""
    if nanoseconds is None:
        return "-"

    floor = _STEPS * step_ns
    return f"<{duration_text(floor / 1e9)}" if nanoseconds < floor else duration_text(nanoseconds / 1e9)


def describe_load(load: Load, names: Sequence[str] = _DESCRIBED, *, varying: bool = False) -> str:
    """Return these fields of the configuration in words. A pipeline of 1 is shown only if it is `varying`."""
    loop = "closed loop" if load.rate is None else f"{format_rate(load.rate)}/s"
    size = f"{load.size} bytes" if load.size < 1024 or load.size % 1024 else format_size(load.size)
    words = {
        "address": load.address,
        "server_backend": f"{load.server_backend} server" * bool(load.server_backend),
        "server_engine": f"{load.server_engine} engine" * bool(load.server_engine),
        "connections": counted(load.connections, "connection"),
        "size": "1 byte" if load.size == 1 else size,
        "pipeline": f"pipeline {load.pipeline}" * (load.pipeline > 1 or varying),
        "rate": loop,
        "arrivals": f"{load.arrivals} gaps" * (load.arrivals != "fixed" or varying),
        "duration": "" if load.duration is None else format_duration(load.duration),
        "requests": "" if load.requests is None else counted(load.requests, "message"),
        "shard_index": f"shard {load.shard_index + 1} of {load.shard_count}" * (load.shard_count > 1),
    }
    return ", ".join(text for name, text in words.items() if text and name in names)


def differences(loads: Sequence[Load]) -> list[str]:
    """Return, for each load, what sets it apart from the other loads; "" if all are equal."""
    varying = [name for name in _DESCRIBED if len({getattr(load, name) for load in loads}) > 1]
    return [describe_load(load, varying, varying=True) for load in loads]


def common_text(loads: Sequence[Load]) -> str:
    """Return what all `loads` have in common."""
    return describe_load(
        loads[0], [name for name in _DESCRIBED if len({getattr(load, name) for load in loads}) == 1]
    )


def labels(runs: Sequence[RunResult]) -> list[str]:
    """Return a different text for each run: what sets its configuration apart, and its number among equal ones."""
    texts = differences([run.load for run in runs])
    seen: Counter[str] = Counter()
    numbered = []
    for text in texts:
        seen[text] += 1
        number = f"run {seen[text]}" if texts.count(text) > 1 else ""
        numbered.append(", ".join(filter(None, (text, number))))

    return numbered


def run_lines(run: RunResult, percentiles: Sequence[float] = PERCENTILES) -> list[str]:
    """Return the lines of one run: its load, the percentiles, and the points of `checks`."""
    lines = [describe_load(run.load), "", *_percentile_lines(run, percentiles), "", *part_lines(run.parts)]
    points = checks(run)
    width = max(len(point.name) for point in points)
    return [*lines, *(f"{'! ' if point.doubt else '  '}{point.name:<{width}}  {point.text}" for point in points)]


def _percentile_lines(run: RunResult, percentiles: Sequence[float]) -> Iterator[str]:
    closed = run.load.rate is None
    rows: list[tuple[str, Histogram]] = [("latency" if closed else "corrected", run.latency)]
    if not closed or run.uncorrected != run.latency:
        rows.append(("uncorrected", run.uncorrected))
    if run.lag.count:
        rows.append(("lag", run.lag))

    yield _row("", [*map(percentile_name, percentiles), "max", "mean"])
    step = run.generator.clock.step_ns
    for name, histogram in rows:
        values = [histogram.quantile(each / 100) for each in percentiles]
        ends = [histogram.max, round(histogram.mean)] if histogram.count else [None, None]
        yield _row(name, [latency_text(each, step) for each in [*values, *ends]])
    if not closed:
        yield _EXPLANATION


def _row(name: str, cells: Sequence[str]) -> str:
    return (f"{name:<12}" + "".join(f"{cell:>9}" for cell in cells)).rstrip()


def document_lines(document: Document, percentiles: Sequence[float] = PERCENTILES) -> list[str]:
    """Return the lines of each run in full, then of the machine."""
    lines = [line for run in document.runs for line in run_lines(run, percentiles)] or ["no runs"]
    machine = machine_text(document.machine)
    return [*lines, f"  machine: {machine}"] if machine else lines


def machine_text(machine: Machine) -> str:
    """Return the facts of the machine that are known, on one line."""
    facts = [machine.system, machine.processor, f"{machine.cores} cores" * bool(machine.cores)]
    facts.append(f"governor {machine.governor}" * bool(machine.governor))
    if machine.load_before and machine.load_after:
        facts.append(f"load {machine.load_before[0]:.2f} before, {machine.load_after[0]:.2f} after")
    if machine.steal is not None:
        facts.append(f"{machine.steal:.2f} s stolen")

    return ", ".join(filter(None, facts))
