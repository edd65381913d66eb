"""Options of ``anyecho bench``: the only place of their defaults and help texts."""

from __future__ import annotations

__all__ = ("PERCENTILES", "BenchOptions", "format_percentiles", "parse_percentiles")

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from anyecho.client.options import ConnectOptions
from anyecho.errors import UsageError
from anyecho.options import option, option_group
from anyecho.units import Rate, Seconds, Size, format_duration
from anyecho.validation import check_types, require_min, require_positive

#: The percentiles of a table, in percent.
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)
#: Seconds: the largest duration of a histogram, in which a lost message stands with its timeout.
_TIMEOUT_MAX = 3600.0


class _Token(Protocol):
    value: str


def parse_percentiles(_: type, tokens: Sequence[_Token]) -> tuple[float, ...]:
    parts = [part for token in tokens for part in token.value.split(",")]
    try:
        percentiles = tuple(float(part) for part in parts)
    except ValueError:
        raise ValueError("write numbers like 50,99.9") from None
    for each in percentiles:
        if not 0 < each < 100:
            raise ValueError(f"{each:g} is not above 0 and below 100")

    return percentiles


def format_percentiles(percentiles: Sequence[float]) -> str:
    return ",".join(f"{each:g}" for each in percentiles)


@option_group("Load")
@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """The load of one run. Times are seconds, sizes bytes, rates messages per second.

    The command line has flags for lists of connections, sizes, rates and pipelines (`SeriesOptions`).

    Raises:
        UsageError: a value has the wrong type or is out of range.
    """

    connections: int = option(10, "Connections.", flag=False)
    duration: Seconds | None = option(10.0, "Measure for this long.", name=("--duration", "-d"), group="Options")
    requests: int | None = option(
        None,
        "Measure this many messages, within --duration (default then: off).",
        name=("--requests", "-n"),
        group="Options",
    )
    rate: Rate | None = option(
        None,
        "Messages per second in all, each sent when due (open loop); None: when a reply is back (closed loop).",
        flag=False,
    )
    arrivals: Literal["fixed", "exponential"] = option(
        "fixed", "Gaps between due times of --rate: equal, or random (a Poisson process)."
    )
    size: Size = option(64, "Bytes per message.", flag=False)
    pipeline: int = option(1, "Maximum outstanding messages per connection.", flag=False)
    warmup: Seconds = option(1.0, "Load before the measurement, in no figure.")
    connect_rate: Rate | None = option(1000.0, "Connections opened per second, before the load.")
    percentiles: tuple[float, ...] = option(
        PERCENTILES,
        "Percentiles to print, like 50,99.9.",
        metavar="LIST",
        converter=parse_percentiles,
        show_default=format_percentiles,
        group="Results",
    )
    cpu: str | None = option(None, "Run the load on these cores only, like 1 or 0,2-3.", metavar="CORES")
    seed: int = option(0, "Seed of the payload and of random gaps.")
    connect: ConnectOptions = option(
        ConnectOptions(),
        "How to connect. Its `timeout` is also the time after which a message is lost.",
        flag=False,
    )

    def __post_init__(self) -> None:
        if self.requests is not None and self.duration == BenchOptions.duration:
            object.__setattr__(self, "duration", None)
        check_types(self)
        require_min(1, self, ("connections", "size", "pipeline", "requests"))
        require_positive(self, ("duration", "rate", "connect_rate"))
        if not 0 <= self.warmup < float("inf"):
            raise UsageError(f"warmup must be 0 or more seconds, not {self.warmup}", options=("warmup",))
        if (timeout := self.connect.timeout) is not None and timeout > _TIMEOUT_MAX:
            text = f"timeout must be at most 1h, not {format_duration(timeout)}"
            raise UsageError(text, options=("timeout",))
        for each in self.percentiles:
            if not 0 < each < 100:
                text = f"percentiles must be above 0 and below 100, not {each:g}"
                raise UsageError(text, options=("percentiles",))
        if self.duration is None and self.requests is None:
            raise UsageError("duration is off: give a number of requests", options=("duration", "requests"))
