"""Statistics of repetitions: exact rank tests, a bootstrap interval, Holm's correction, rank correlation, fairness.

The unit is the repetition: single echoes are not independent of each other. The functions are pure. (scipy has most
of them, at 100 MB with numpy; no light package has the exact tests with ties.)
"""

from __future__ import annotations

__all__ = (
    "Interval",
    "adjusted_by_holm",
    "jain_index",
    "mann_whitney_p",
    "median_ratio",
    "mid_ranks",
    "spearman",
    "wilcoxon_p",
)

import math
from collections.abc import Sequence
from functools import cache
from itertools import permutations
from random import Random
from statistics import NormalDist, median
from typing import NamedTuple

#: Values up to which a rank test is exact, in a few ms. Beyond, the normal distribution is close.
_EXACT_MAX = 60
#: Pairs up to which all orders are tried for `spearman`: 5,040.
_ORDERS_MAX = 7
_RESAMPLES = 2000


class Interval(NamedTuple):
    """An estimate with its 95 % confidence interval."""

    estimate: float
    low: float
    high: float


def mid_ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, from 1; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for index in order[start:end]:
            ranks[index] = (start + 1 + end) / 2
        start = end

    return ranks


def mann_whitney_p(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the two-sided p-value of the Mann-Whitney U test; ties by mid-ranks.

    Exact for at most 60 values, conditional on the ties; else from the normal distribution, corrected for ties.
    """
    if not one or not other:
        return 1.0

    ranks = mid_ranks([*one, *other])
    rank_sum, count, total = sum(ranks[: len(one)]), len(one), len(ranks)
    if total <= _EXACT_MAX:
        doubled = tuple(sorted(round(2 * rank) for rank in ranks))
        return _two_sided(_sums_of_choices(doubled, count), round(2 * rank_sum))

    # Sampling without replacement: the variance of a sum of `count` of the ranks.
    mean = (total + 1) / 2
    spread = sum((rank - mean) ** 2 for rank in ranks)
    return _normal_p(rank_sum - count * mean, count * len(other) * spread / (total * (total - 1)), step=0.5)


def wilcoxon_p(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the two-sided p-value of the Wilcoxon signed-rank test of pairs; ties by mid-ranks.

    Pairs of equal values are left out. Exact for at most 60 pairs, else from the normal distribution.
    """
    differences = [left - right for left, right in zip(one, other, strict=True) if left != right]
    ranks = mid_ranks([abs(each) for each in differences])
    rank_sum = sum(rank for rank, difference in zip(ranks, differences, strict=True) if difference > 0)
    if len(ranks) <= _EXACT_MAX:
        doubled = tuple(sorted(round(2 * rank) for rank in ranks))
        return _two_sided(_sums_of_subsets(doubled), round(2 * rank_sum))

    return _normal_p(rank_sum - sum(ranks) / 2, sum(rank**2 for rank in ranks) / 4, step=0.5)


def spearman(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Return Spearman's rank correlation and its two-sided p-value.

    The p-value is exact for at most 7 pairs, else from the normal distribution. Without variation, it is (0, 1).
    """
    left, right = mid_ranks(one), mid_ranks(other)
    count, mean = len(left), (len(left) + 1) / 2
    left, right = [each - mean for each in left], [each - mean for each in right]
    scale = math.sqrt(math.fsum(each**2 for each in left) * math.fsum(each**2 for each in right))
    if scale == 0:
        return 0.0, 1.0

    product = _dot(left, right)
    if count <= _ORDERS_MAX:
        products = [_dot(left, order) for order in permutations(right)]
        p = sum(abs(each) >= abs(product) - 1e-9 for each in products) / len(products)
    else:
        p = _normal_p(product / scale * math.sqrt(count - 1), 1.0)

    return product / scale, p


def median_ratio(
    baseline: Sequence[float], changed: Sequence[float], *, paired: bool = False, seed: int = 1
) -> Interval:
    """Return the median of `changed` divided by that of `baseline`, with its bootstrap percentile interval.

    With `paired`, values of the same index were measured side by side and are drawn together. All are above 0.
    """
    random = Random(seed)
    ratios = []
    for _ in range(_RESAMPLES):
        if paired:
            drawn = random.choices(range(len(baseline)), k=len(baseline))
            below, above = [baseline[index] for index in drawn], [changed[index] for index in drawn]
        else:
            below = random.choices(baseline, k=len(baseline))
            above = random.choices(changed, k=len(changed))
        ratios.append(median(above) / median(below))

    ratios.sort()
    tail = round(_RESAMPLES * 0.025)
    return Interval(median(changed) / median(baseline), ratios[tail], ratios[-1 - tail])


def adjusted_by_holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number by Holm's method, in the given order."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for tried, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min((len(p_values) - tried) * p_values[index], 1.0))
        adjusted[index] = largest

    return adjusted


def jain_index(values: Sequence[float]) -> float:
    """Return Jain's fairness index: 1 if all values are equal, 1/n if all but one are 0."""
    squares = math.fsum(each**2 for each in values)
    return math.fsum(values) ** 2 / (len(values) * squares) if squares else 1.0


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def _normal_p(deviation: float, variance: float, *, step: float = 0.0) -> float:
    """Return the two-sided p-value of a `deviation` from the mean; `step` is the continuity correction."""
    if variance <= 0:
        return 1.0

    z = max(abs(deviation) - step, 0.0) / math.sqrt(variance)
    return min(2 * NormalDist().cdf(-z), 1.0)


def _two_sided(counts: Sequence[int], observed: int) -> float:
    """Return the share of outcomes at least as far from the mean as `observed`; `counts` by outcome."""
    total = sum(counts)
    # Multiplied by `total`, so that the comparison is one of integers.
    mean = sum(value * count for value, count in enumerate(counts))
    distance = abs(observed * total - mean)
    return sum(count for value, count in enumerate(counts) if abs(value * total - mean) >= distance) / total


@cache
def _sums_of_choices(ranks: tuple[int, ...], chosen: int) -> tuple[int, ...]:
    """Return, by sum, in how many ways `chosen` of `ranks` have that sum."""
    # A polynomial per number of chosen ranks: its coefficients are fields of `width` bytes of one int.
    width = math.comb(len(ranks), chosen).bit_length() // 8 + 1
    ways = [1, *[0] * chosen]
    for rank in ranks:
        for number in range(chosen, 0, -1):
            ways[number] += ways[number - 1] << (8 * width * rank)

    return _coefficients(ways[chosen], width)


@cache
def _sums_of_subsets(ranks: tuple[int, ...]) -> tuple[int, ...]:
    """Return, by sum, how many subsets of `ranks` have that sum."""
    width = len(ranks) // 8 + 1
    ways = 1
    for rank in ranks:
        ways += ways << (8 * width * rank)

    return _coefficients(ways, width)


def _coefficients(polynomial: int, width: int) -> tuple[int, ...]:
    data = polynomial.to_bytes(-(-polynomial.bit_length() // (8 * width)) * width, "little")
    return tuple(int.from_bytes(data[start : start + width], "little") for start in range(0, len(data), width))
