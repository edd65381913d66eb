"""Quantiles of sorted samples by nearest rank: each is a measured value, never an interpolation.

A high quantile of few samples is little more than their maximum. `is_resolved` says whether enough of them lie
beyond it.
"""

from __future__ import annotations

__all__ = ("BEYOND", "is_resolved", "quantile", "resolved_quantile")

import math
from collections.abc import Sequence
from fractions import Fraction

#: Samples above a quantile that make it worth printing: p50 needs 20 samples, p95 200, p99 1000, p99.9 10,000.
BEYOND = 10


def quantile(samples: Sequence[int], q: float) -> int:
    """Return the smallest of `samples` that at least the share `q` of them does not exceed.

    `samples` are sorted in ascending order, and at least one. `q` is from 0 to 1; 0 is the minimum.
    """
    return samples[_rank(len(samples), q) - 1]


def is_resolved(count: int, q: float) -> bool:
    """Return whether at least `BEYOND` of `count` samples lie above the rank of quantile `q`."""
    return count > 0 and count - _rank(count, q) >= BEYOND


def resolved_quantile(samples: Sequence[int], q: float) -> int | None:
    """Return `quantile(samples, q)`, or None if it is not resolved."""
    return quantile(samples, q) if is_resolved(len(samples), q) else None


def _rank(count: int, q: float) -> int:
    # Exact: in floats, 0.07 * 100 is more than 7.
    return max(math.ceil(Fraction(str(q)) * count), 1)
