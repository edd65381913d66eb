"""Quantiles by nearest rank."""

from __future__ import annotations

import pytest

from anyecho.measure.quantiles import is_resolved, quantile, resolved_quantile

HUNDRED = range(1, 101)


@pytest.mark.parametrize(
    ("q", "expected"), [(0, 1), (0.005, 1), (0.07, 7), (0.5, 50), (0.501, 51), (0.99, 99), (0.999, 100), (1, 100)]
)
def test_a_quantile_is_the_sample_of_the_nearest_rank(q: float, expected: int) -> None:
    assert quantile(HUNDRED, q) == expected


@pytest.mark.parametrize("q", [0, 0.5, 0.99, 1])
def test_every_quantile_of_a_single_sample_is_this_sample(q: float) -> None:
    assert quantile([7], q) == 7


@pytest.mark.parametrize(("q", "count"), [(0, 11), (0.5, 20), (0.95, 200), (0.99, 1000), (0.999, 10_000)])
def test_a_quantile_is_resolved_if_ten_samples_lie_beyond_it(q: float, count: int) -> None:
    assert is_resolved(count, q)
    assert not is_resolved(count - 1, q)
    assert resolved_quantile(range(count), q) == quantile(range(count), q)
    assert resolved_quantile(range(count - 1), q) is None


@pytest.mark.parametrize("q", [0, 0.5, 1])
def test_no_quantile_of_no_samples_is_resolved(q: float) -> None:
    assert resolved_quantile([], q) is None
