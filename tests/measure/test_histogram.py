"""Histograms agree with their samples, merge exactly, and are read as HdrHistogram's tools read them."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from random import Random

import pytest
from hdrh.histogram import HdrHistogram

from anyecho.errors import InternalError, UsageError
from anyecho.measure.histogram import MAX_VALUE, Histogram

QUANTILES = (0.001, 0.1, 0.5, 0.9, 0.99, 0.999)


def drawn(seed: int, count: int) -> list[int]:
    random = Random(seed)
    return [round(random.lognormvariate(11, 1.5)) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 10, 999, 20_000])
def test_a_quantile_is_the_nearest_rank_within_three_digits(count: int) -> None:
    samples = sorted(drawn(count, count))
    histogram = Histogram.from_samples(samples)

    assert (histogram.count, histogram.min, histogram.max) == (count, samples[0], samples[-1])
    for quantile in QUANTILES:
        exact = samples[math.ceil(round(quantile * count, 6)) - 1]
        assert exact <= histogram.value_at(quantile) <= min(exact * 1.001, samples[-1])
    assert (histogram.value_at(0), histogram.value_at(1)) == (samples[0], samples[-1])


def test_small_values_are_exact() -> None:
    histogram = Histogram.from_samples(range(2048))
    assert [histogram.value_at(each) for each in (0.25, 0.5, 0.75)] == [511, 1023, 1535]


@pytest.mark.parametrize(
    ("count", "quantile", "known"),
    [
        (1000, 0.99, True),
        (999, 0.99, False),
        (10_000, 0.999, True),
        (9_999, 0.999, False),
        (20, 0.5, True),
        (19, 0.5, False),
        (0, 0.5, False),
        (100, 0.07, True),
    ],
)
def test_a_quantile_needs_ten_samples_beyond_it(count: int, quantile: float, known: bool) -> None:
    histogram = Histogram.from_samples(range(count))
    assert histogram.quantile(quantile) == (histogram.value_at(quantile) if known else None)


def test_a_rank_is_not_rounded_up_by_a_float() -> None:
    assert 0.07 * 100 > 7
    assert Histogram.from_samples(range(1, 101)).value_at(0.07) == 7


@pytest.mark.parametrize("value", [-1, MAX_VALUE + 1])
def test_a_duration_out_of_range_is_an_error_and_not_dropped(value: int) -> None:
    with pytest.raises(InternalError, match=f"^a duration of {value} ns is not between 0 and an hour$"):
        Histogram.from_samples([5, value, 7])


def test_the_limits_of_the_range_are_kept() -> None:
    histogram = Histogram.from_samples([0, MAX_VALUE])
    assert (histogram.count, histogram.value_at(0.5), histogram.value_at(1)) == (2, 0, MAX_VALUE)


@pytest.mark.parametrize("shards", [1, 2, 8])
def test_merged_shards_are_equal_to_the_histogram_of_all_samples(shards: int) -> None:
    samples = drawn(3, 10_000)
    whole = Histogram.from_samples(samples)
    merged = Histogram.merged(Histogram.from_samples(samples[number::shards]) for number in range(shards))

    assert merged == whole
    assert [merged.value_at(each) for each in QUANTILES] == [whole.value_at(each) for each in QUANTILES]
    assert (merged.mean, merged.deviation, [*merged.spectrum()]) == (
        whole.mean,
        whole.deviation,
        [*whole.spectrum()],
    )


def test_merging_leaves_the_parts_unchanged_and_skips_empty_ones() -> None:
    empty, one = Histogram.from_samples([]), Histogram.from_samples([7014])
    before = one.to_json()
    merged = Histogram.merged([one, empty, one])
    assert (merged.count, merged.min, merged.max) == (2, 7014, 7014)
    assert one.to_json() == before
    assert Histogram.merged([]) == Histogram.merged([empty]) == empty


def test_an_empty_histogram_has_no_figures() -> None:
    empty = Histogram.from_samples([])
    assert (empty.count, empty.min, empty.max, empty.value_at(0.5), empty.mean, empty.deviation) == (0,) * 6
    assert [*empty.spectrum()] == []
    assert Histogram.from_json(empty.to_json()) == empty


def test_a_histogram_survives_its_json() -> None:
    histogram = Histogram.from_samples(drawn(4, 1000))
    read = Histogram.from_json(histogram.to_json())
    assert read == histogram
    assert (read.min, read.max, read.mean) == (histogram.min, histogram.max, histogram.mean)
    assert Histogram.merged([read, read]).count == 2000


def test_mean_and_deviation_agree_with_the_samples() -> None:
    samples = drawn(5, 5000)
    histogram = Histogram.from_samples(samples)
    mean = sum(samples) / len(samples)
    deviation = math.sqrt(sum((each - mean) ** 2 for each in samples) / len(samples))
    assert histogram.mean == pytest.approx(mean, rel=1e-3)
    assert histogram.deviation == pytest.approx(deviation, rel=1e-3)


def test_the_spectrum_halves_the_distance_to_the_maximum() -> None:
    histogram = Histogram.from_samples(range(1, 1001))
    points = [*histogram.spectrum(ticks=1)]
    assert [point[0] for point in points[:5]] == [0, 0.5, 0.75, 0.875, 0.9375]
    assert points[1][1:] == (500, 500)
    assert points[-1] == (1.0, 1000, 1000)
    assert [value for _, value, _ in points] == sorted(value for _, value, _ in points)


@pytest.mark.parametrize(
    ("lowest", "highest", "digits"), [(1, MAX_VALUE, 2), (1, 3_600_000_000, 3), (1000, MAX_VALUE, 3)]
)
def test_another_layout_is_refused(lowest: int, highest: int, digits: int) -> None:
    other = HdrHistogram(lowest, highest, digits)
    other.record_value(5000)
    value = {"count": 1, "min": 5000, "max": 5000, "hdr": other.encode().decode()}
    with pytest.raises(UsageError, match=r"^a histogram has another layout .* cannot be merged exactly$"):
        Histogram.from_json(value)


@pytest.mark.parametrize(
    "changes",
    [
        {"hdr": None},
        {"hdr": ""},
        {"hdr": "x"},
        {"hdr": "HISTFAAAAEV42pNpmSz"},
        {"hdr": "AAAAAAAAAAAAAAAA"},
        {"count": 99},
        {"count": None},
        {"min": 6000},
        {"max": 1},
        {"max": 10**9},
        {"min": -5},
        {"max": 1.5},
        {"max": MAX_VALUE + 1},
    ],
    ids=str,
)
def test_a_damaged_histogram_is_refused(changes: dict[str, object]) -> None:
    value = Histogram.from_samples([5000, 100_000]).to_json()
    assert Histogram.from_json(value).count == 2
    with pytest.raises(UsageError, match=r"^a histogram is damaged"):
        Histogram.from_json(value | changes)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_cut_payload_is_refused(cut: int) -> None:
    value = Histogram.from_samples(drawn(6, 500)).to_json()
    with pytest.raises(UsageError, match=r"^a histogram is damaged"):
        Histogram.from_json(value | {"hdr": value["hdr"][:-cut]})


@pytest.mark.parametrize("seed", range(30))
def test_a_payload_with_wrong_bytes_is_refused_or_has_the_same_count(seed: int) -> None:
    value = Histogram.from_samples(drawn(7, 100)).to_json()
    encoded = base64.b64decode(value["hdr"])
    random = Random(seed)
    for _ in range(50):
        body = bytearray(zlib.decompress(encoded[8:]))
        for _ in range(3):
            body[random.randrange(len(body))] = random.randrange(256)
        packed = zlib.compress(bytes(body[: random.randrange(len(body) * 2)]))
        changed = base64.b64encode(encoded[:4] + struct.pack(">i", len(packed)) + packed).decode()
        try:
            assert Histogram.from_json(value | {"hdr": changed}).count == 100
        except UsageError:
            continue
