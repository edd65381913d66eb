"""The generators of a merged run: a row for each, also for one that was lost."""

from __future__ import annotations

__all__ = ("PART_HEADS", "part_lines", "part_rows", "parts_of")

from collections.abc import Iterator, Mapping, Sequence

from anyecho.measure.checks import duration_text, rate_text
from anyecho.measure.result import Part, RunResult

#: The heads of `part_rows`.
PART_HEADS = ("", "messages", "msg/s", "p50", "p99", "lag p99", "CPU")


def parts_of(runs: Sequence[RunResult], names: Sequence[str], lost: Mapping[int, str]) -> tuple[Part, ...]:
    """Return a part for each of `runs`, and for each shard that was `lost`, by number.

    `names` are those of all shards, by their number. A single run has no parts, and merged ones keep theirs.
    """
    count = runs[0].load.shard_count
    if len(runs) == 1 and count == 1:
        return runs[0].parts

    parts: list[tuple[int, Part]] = []
    for position, run in enumerate(runs):
        if run.parts:
            parts += [(position, each) for each in run.parts]
        else:
            number = run.load.shard_index if count > 1 else position
            parts.append((number, _part(run, _name(number, count, names))))
    parts += [(number, Part(name=_name(number, count, names), error=f"lost: {lost[number]}")) for number in lost]
    return tuple(part for _, part in sorted(parts, key=lambda each: each[0]))


def _name(number: int, count: int, names: Sequence[str]) -> str:
    if names:
        return names[number]

    return f"shard {number + 1} of {count}" if count > 1 else f"generator {number + 1}"


def _part(run: RunResult, name: str) -> Part:
    quantiles = [run.latency.quantile(0.5), run.latency.quantile(0.99), run.lag.quantile(0.99)]
    p50, p99, lag_p99 = (None if each is None else each / 1e9 for each in quantiles)
    return Part(
        name=name,
        host=run.generator.host,
        connections=run.load.connections,
        sent=run.counts.sent,
        verified=run.counts.verified,
        rate=run.rate,
        p50=p50,
        p99=p99,
        lag_p99=lag_p99,
        cpu_share=run.generator.cpu_share,
        pinned=run.generator.pinned,
        error=run.error,
    )


def part_lines(parts: Sequence[Part]) -> Iterator[str]:
    """Yield a table of `parts`."""
    if not parts:
        return

    rows = list(part_rows(parts))
    width = max(len(label) for label, *_ in rows)
    for label, *cells in (PART_HEADS, *rows):
        is_lost = len(cells) == 1
        yield f"{label:<{width}}" + (f"  {cells[0]}" if is_lost else "".join(f"{cell:>10}" for cell in cells))
    yield ""


def part_rows(parts: Sequence[Part]) -> Iterator[list[str]]:
    """Yield the row of each part: its name, with the host if there are several; its figures or an error."""
    is_one_host = len({each.host for each in parts if each.host}) < 2
    for part in parts:
        label = part.name if is_one_host or not part.host else f"{part.name} on {part.host}"
        if part.error and not part.host:
            yield [label, part.error]
            continue

        latencies = ["-" if each is None else duration_text(each) for each in (part.p50, part.p99, part.lag_p99)]
        rate = rate_text(part.rate).removesuffix("/s")
        yield [label, str(part.sent), rate, *latencies, f"{part.cpu_share:.0%}"]
