"""The figures of a summary in the style of ping(8), from latencies in integer nanoseconds."""

from __future__ import annotations

__all__ = ("PingFigures", "figures_of")

import math
from collections.abc import Sequence
from dataclasses import dataclass

from anyecho.measure.quantiles import resolved_quantile


@dataclass(frozen=True, kw_only=True)
class PingFigures:
    """Nanoseconds. `mdev` is the population standard deviation, as in ping(8). An unresolved quantile is None."""

    minimum: int
    average: int
    maximum: int
    mdev: int
    p50: int | None
    p95: int | None
    p99: int | None

    @property
    def jitter(self) -> int | None:
        """p95 - p50; None if p95 is not resolved."""
        return None if self.p95 is None or self.p50 is None else self.p95 - self.p50


def figures_of(latencies: Sequence[int]) -> PingFigures | None:
    """Return the figures of `latencies`, in any order; None if there are none."""
    if not latencies:
        return None

    ordered = sorted(latencies)
    count, total = len(ordered), sum(ordered)
    # Exact until the root: a difference of two large squares loses all digits as floats.
    variance = count * sum(each * each for each in ordered) - total * total
    return PingFigures(
        minimum=ordered[0],
        average=total // count,
        maximum=ordered[-1],
        mdev=math.isqrt(variance) // count,
        p50=resolved_quantile(ordered, 0.5),
        p95=resolved_quantile(ordered, 0.95),
        p99=resolved_quantile(ordered, 0.99),
    )
