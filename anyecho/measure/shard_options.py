"""Options that divide a load among processes, workers and machines: the only place of their help texts."""

from __future__ import annotations

__all__ = ("ShardOptions",)

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from anyecho.errors import UnitError, UsageError
from anyecho.options import option, option_group
from anyecho.units import parse_duration
from anyecho.validation import check_types, require_min

#: Digits of the number of a shard.
_SHARD = re.compile(r"([0-9]{1,6})/([0-9]{1,6})", re.A)
_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?", re.A)


@option_group("Division of the load")
@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """How one load is divided. Rate, messages and connections are those of all shards together.

    Raises:
        UsageError: a value is out of range, or two ways of dividing are given.
    """

    processes: int = option(1, "Divide the load among this many processes, each on a core of its own.")
    shard: str | None = option(
        None, "Run only this part of the load, like 1/4, and merge the files of all with report.", metavar="I/N"
    )
    start_at: str | None = option(
        None,
        "Begin to measure at this time, like 2026-01-31T12:00:00Z, in seconds since 1970, or from now like +10s.",
        metavar="TIME",
    )
    dask: str | None = option(
        None,
        "Divide the load among the workers of the Dask cluster with this scheduler, like tcp://scheduler:8786.",
        metavar="ADDRESS",
    )

    def __post_init__(self) -> None:
        check_types(self)
        require_min(1, self, ("processes",))
        given = [
            name for name in ("processes", "shard", "dask") if getattr(self, name) != getattr(ShardOptions, name)
        ]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} exclude each other", options=given)
        if self.start_at is not None and len({*given} - {"shard"}):
            text = f"start_at excludes {given[0]}, whose shards wait for each other"
            raise UsageError(text, options=("start_at", given[0]))
        _ = self.part

    @property
    def part(self) -> tuple[int, int]:
        """The shard as index, from 0, and count."""
        if self.shard is None:
            return 0, 1

        match = _SHARD.fullmatch(self.shard)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            text = f"shard must be a number and how many there are, like 1/4 to 4/4, not {self.shard[:40]!r}"
            raise UsageError(text, options=("shard",))

        return int(match[1]) - 1, int(match[2])

    def start(self, now: float) -> float | None:
        """Return the start in seconds since 1970, if given. Raises `UsageError` if it is no time, or past."""
        if self.start_at is None:
            return None

        start = _parse_time(self.start_at, now)
        if start < now:
            text = f"start_at {self.start_at} is {now - start:.1f} s in the past"
            raise UsageError(text, options=("start_at",))

        return start


def _parse_time(text: str, now: float) -> float:
    with suppress(UnitError, ValueError, OverflowError):
        if text.startswith("+"):
            return now + parse_duration(text[1:])
        if _SECONDS.fullmatch(text):
            return float(text)

        time = datetime.fromisoformat(text)
        if time.tzinfo is not None:
            return time.timestamp()

    hint = "write like 2026-01-31T12:00:00Z, 1769860800 or +10s"
    raise UsageError(f"start_at {text[:40]!r} is not a time: {hint}", options=("start_at",))
