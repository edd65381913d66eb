"""What the percentiles of a closed loop hide: messages that a stall kept from being sent (coordinated omission).

A connection of a closed loop always waits for a reply, so its latencies fill its time. A message that comes at a
random time meets a latency with a probability that is proportional to its length, and waits for the rest of it.
"""

from __future__ import annotations

__all__ = ("Stall",)

from dataclasses import dataclass
from typing import Annotated

from anyecho.measure.figures import Figures
from anyecho.measure.histogram import Histogram

_QUANTILE = 0.99
#: Ratio of the p99 at a random time to that of the latencies, from which there is a stall. It is 1 for exponential
#: latencies, and below 1 for equal ones.
_RATIO = 2.0


@dataclass(frozen=True, kw_only=True)
class Stall(Figures):
    """A stall that the percentiles of a closed loop hide."""

    longest: Annotated[float, "Seconds of the longest wait for a verified reply."]
    unsent: Annotated[int, "Messages that were not sent because of long waits, about."]
    p99: Annotated[float, "p99 of the wait for a reply at a random time, in seconds."]

    @classmethod
    def of(cls, latencies: Histogram) -> Stall | None:
        """Return the stall in the `latencies` of a closed loop; None if their percentiles show what there is."""
        p99 = latencies.value_at(_QUANTILE)
        at_random = _remaining(latencies, _QUANTILE)
        if at_random <= _RATIO * p99:
            return None

        usual = [(value, count) for value, count in latencies.weights() if value <= _RATIO * p99]
        usual_time, usual_count = sum(value * count for value, count in usual), sum(count for _, count in usual)
        long_time = latencies.mean * latencies.count - usual_time
        return cls(
            longest=latencies.max / 1e9,
            unsent=round(long_time / max(usual_time / usual_count, 1)),
            p99=at_random / 1e9,
        )


def _remaining(latencies: Histogram, quantile: float) -> float:
    """Return the quantile of the time that remains, at a random time, until the reply."""
    sought = (1 - quantile) * latencies.mean * latencies.count
    time, number = 0.0, 0
    # The time with more than w to wait is the sum of (latency - w) over the latencies above w.
    for value, count in sorted(latencies.weights(), reverse=True):
        if time - number * value >= sought:
            break
        time += value * count
        number += count

    return max((time - sought) / number, 0.0) if number else 0.0
