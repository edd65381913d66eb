"""Statistics agree with published tables, with the values of scipy 1.17, and with counting all cases."""

from __future__ import annotations

import math
from itertools import combinations, product
from random import Random
from statistics import median

import pytest

from anyecho.measure.statistics import (
    adjusted_by_holm,
    jain_index,
    mann_whitney_p,
    median_ratio,
    mid_ranks,
    spearman,
    wilcoxon_p,
)

ONE = [-1.179, -1.148, 0.669, -2.294, -0.143, -2.256, 1.101]
OTHER = [1.203, 2.356, 0.496, 1.398, 0.714, 0.262, 1.145]


def test_ranks_of_equal_values_are_their_mean() -> None:
    assert mid_ranks([]) == []
    assert mid_ranks([3, 1, 2]) == [3, 1, 2]
    assert mid_ranks([5, 2, 2, 9, 5, 5]) == [4, 1.5, 1.5, 6, 4, 4]


@pytest.mark.parametrize(
    ("size", "p"), [(3, 0.1), (4, 2 / 70), (5, 2 / 252), (7, 2 / 3432), (30, 2 / math.comb(60, 30))]
)
def test_the_smallest_p_of_mann_whitney_is_that_of_separated_samples(size: int, p: float) -> None:
    assert mann_whitney_p(range(size), range(size, 2 * size)) == pytest.approx(p)


@pytest.mark.parametrize(
    ("one", "other", "u", "p"),
    [
        # Two-sided critical values of U at 5 %, Mann and Whitney (1947): the first is below it, the second above.
        (5, 5, 2, 0.0317),
        (5, 5, 3, 0.0556),
        (7, 7, 8, 0.0379),
        (7, 7, 9, 0.0530),
        (8, 6, 8, 0.0426),
        (8, 6, 9, 0.0593),
    ],
)
def test_mann_whitney_agrees_with_the_table_of_critical_values(one: int, other: int, u: int, p: float) -> None:
    # A sample of the lowest ranks; its largest ones move up until U is as asked.
    ranks = list(range(1, one + 1))
    for index in reversed(range(one)):
        step = min(u, other)
        ranks[index] += step
        u -= step
    rest = sorted({*range(1, one + other + 1)} - {*ranks})
    assert mann_whitney_p(ranks, rest) == pytest.approx(p, abs=5e-5)


@pytest.mark.parametrize(
    ("one", "other", "p"),
    [
        ([1, 2, 4, 6, 7], [3, 5, 8, 9, 10, 11], 0.08225108225108226),
        (ONE, OTHER, 0.011072261072261072),
        ([(i * 7) % 41 for i in range(40)], [(i * 5) % 37 + 6 for i in range(45)], 0.10325375696455276),
        ([1, 1, 2, 2, 3] * 10, [2, 3, 3, 4, 4] * 8, 1.5802582306743452e-10),
    ],
)
def test_mann_whitney_agrees_with_scipy(one: list[float], other: list[float], p: float) -> None:
    assert mann_whitney_p(one, other) == pytest.approx(p)
    assert mann_whitney_p(other, one) == pytest.approx(p)


def test_mann_whitney_with_ties_counts_all_divisions() -> None:
    random = Random(1)
    for _ in range(20):
        values = random.choices(range(4), k=8)
        ranks = mid_ranks(values)
        sums = [sum(chosen) for chosen in combinations(ranks, 3)]
        distance = abs(sum(ranks[:3]) - 3 * 4.5)
        p = sum(abs(each - 3 * 4.5) >= distance for each in sums) / len(sums)
        assert mann_whitney_p(values[:3], values[3:]) == pytest.approx(p)


@pytest.mark.parametrize("sample", [[], [1, 1, 1], [2] * 100])
def test_equal_values_are_never_different(sample: list[float]) -> None:
    assert mann_whitney_p(sample, sample) == 1
    assert wilcoxon_p(sample, sample) == 1


@pytest.mark.parametrize(
    ("one", "other", "p"),
    [
        (ONE, OTHER, 0.046875),
        ([(i * 7) % 41 + 1 for i in range(70)], [(i * 5) % 37 for i in range(70)], 0.11647479931221122),
        (range(1, 6), [0] * 5, 1 / 16),
        (range(1, 8), [0] * 7, 1 / 64),
    ],
)
def test_wilcoxon_agrees_with_scipy_and_its_smallest_p(one: list[float], other: list[float], p: float) -> None:
    assert wilcoxon_p(one, other) == pytest.approx(p)
    assert wilcoxon_p(other, one) == pytest.approx(p)


def test_wilcoxon_with_ties_counts_all_signs() -> None:
    random = Random(2)
    for _ in range(20):
        differences = [each for each in random.choices(range(-3, 4), k=7) if each]
        ranks = mid_ranks([abs(each) for each in differences])
        observed = sum(rank for rank, each in zip(ranks, differences, strict=True) if each > 0)
        sums = [
            sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
            for signs in product((0, 1), repeat=len(ranks))
        ]
        middle = sum(ranks) / 2
        p = sum(abs(each - middle) >= abs(observed - middle) for each in sums) / len(sums)
        assert wilcoxon_p(differences, [0] * len(differences)) == pytest.approx(p)


@pytest.mark.parametrize(
    ("one", "other", "rho", "p"),
    [
        # scipy's permutation_test; the p-value of its spearmanr is an approximation.
        (range(1, 8), [2, 1, 4, 3, 7, 5, 6], 0.8214285714285715, 0.034126984126984124),
        (range(4), range(4), 1, 2 / 24),
        (range(4), [3, 2, 1, 0], -1, 2 / 24),
        ([1, 2, 2, 4, 5, 6, 7, 8, 9, 9], [2, 1, 4, 3, 3, 5, 6, 9, 8, 10], 0.9052030094975445, 0.0066),
        ([1, 1, 1], [1, 2, 3], 0, 1),
    ],
)
def test_spearman_agrees_with_scipy(one: list[float], other: list[float], rho: float, p: float) -> None:
    found = spearman(one, other)
    assert found[0] == pytest.approx(rho)
    assert found[1] == pytest.approx(p, rel=0.01)


def test_the_interval_of_a_ratio_holds_the_true_ratio_mostly() -> None:
    random = Random(3)
    held = 0
    for seed in range(200):
        one, other = ([random.lognormvariate(0, 0.2) * scale for _ in range(12)] for scale in (1, 1.25))
        interval = median_ratio(one, other, seed=seed)
        assert interval.low <= interval.estimate <= interval.high
        assert interval.estimate == median(other) / median(one)
        held += interval.low <= 1.25 <= interval.high
    assert held >= 180


def test_pairs_narrow_the_interval_if_rounds_differ() -> None:
    random = Random(4)
    rounds = [random.lognormvariate(0, 0.5) for _ in range(7)]
    one, other = ([each * scale * random.lognormvariate(0, 0.01) for each in rounds] for scale in (1, 1.1))
    paired, alone = (median_ratio(one, other, paired=paired) for paired in (True, False))
    assert paired.estimate == alone.estimate
    assert 1 < paired.low <= paired.high < 1.2
    assert alone.high - alone.low > 5 * (paired.high - paired.low)


def test_an_interval_is_the_same_for_the_same_seed() -> None:
    values = [*range(1, 41)]
    assert median_ratio(values, values, seed=5) == median_ratio(values, values, seed=5)
    assert median_ratio(values, values, seed=5) != median_ratio(values, values, seed=7)


def test_holm_multiplies_by_the_hypotheses_that_are_left() -> None:
    assert adjusted_by_holm([]) == []
    # Holm (1979): 4 * 0.005, 3 * 0.01, then no smaller than before.
    assert adjusted_by_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjusted_by_holm([0.9, 0.8]) == [1, 1]


def test_the_jain_index_is_1_for_equal_values_and_1_of_n_for_one() -> None:
    assert (jain_index([3, 3, 3]), jain_index([0, 0, 0, 5]), jain_index([0, 0])) == (1, 0.25, 1)


def repetitions(random: Random, rounds: list[float], scale: float = 1.0) -> list[float]:
    """Return a figure of each round with the noise of the round, which is larger, and its own."""
    return [each * scale * random.lognormvariate(0, 0.04) for each in rounds]


def test_unchanged_runs_are_rarely_called_different() -> None:
    random = Random(6)
    unpaired = paired = 0
    for _ in range(1000):
        unpaired += mann_whitney_p(*(repetitions(random, [1.0] * 7) for _ in range(2))) < 0.05
        rounds = repetitions(random, [1.0] * 7)
        paired += wilcoxon_p(*(repetitions(random, rounds) for _ in range(2))) < 0.05

    assert 20 <= unpaired <= 70
    assert 20 <= paired <= 70


def test_a_change_of_25_percent_is_found_in_seven_pairs() -> None:
    random = Random(7)
    found = 0
    for _ in range(100):
        rounds = [random.lognormvariate(0, 0.3) for _ in range(7)]
        one, other = (repetitions(random, rounds, scale) for scale in (1, 1.25))
        found += wilcoxon_p(one, other) < 0.05

    assert found >= 90
