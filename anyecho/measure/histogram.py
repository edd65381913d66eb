"""Histograms of durations in nanoseconds, in the layout and the encoding of HdrHistogram.

One layout only: 1 ns to 1 h at 3 significant digits, so that any two histograms merge without loss. Nothing is
recorded while a run lasts: a histogram is made from its samples at the end.
"""

from __future__ import annotations

__all__ = ("MAX_VALUE", "MIN_BEYOND", "Histogram")

import math
import zlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

from anyecho.errors import InternalError, StartError, UsageError

try:
    from hdrh.codec import HdrCookieException, HdrHistogramEncoder, HdrLengthException
    from hdrh.histogram import HdrHistogram
except ImportError as exc:  # a Python built without libffi has no ctypes
    raise StartError(f"histograms need {exc.name}, which this Python does not have") from exc

#: One hour, the largest duration of a histogram.
MAX_VALUE = 3_600_000_000_000
#: Smallest and largest value, and significant digits.
_LAYOUT = (1, MAX_VALUE, 3)
#: A quantile is known if at least this many samples are beyond it: p99.9 needs 10,000 samples.
MIN_BEYOND = 10

#: By bit length of a value: the lowest bits that its bucket ignores. 3 digits take 2,048 buckets per power of 2.
_SHIFTS = [max(bits - 11, 0) for bits in range(MAX_VALUE.bit_length() + 1)]
_DAMAGES = (HdrCookieException, HdrLengthException, LookupError, ValueError, TypeError, zlib.error)


class Histogram:
    """Immutable counts of durations, with the exact minimum and maximum. `min` and `max` are 0 without samples.

    It holds the compressed encoding and the buckets with samples: 1 to 40 kB, where an HdrHistogram takes 270 kB.
    """

    def __init__(self, hdr: HdrHistogram, *, minimum: int, maximum: int) -> None:
        self.count: int = hdr.get_total_count()
        self.min = minimum
        self.max = maximum
        #: The compressed V2 encoding in base64.
        self.payload: str = hdr.encode().decode()
        counts = hdr.counts[:]
        indices = [index for index, count in enumerate(counts) if count]
        #: The tops of the buckets with samples, and the number of samples up to each.
        self._tops = array("q", [_top(hdr.get_value_from_index(index)) for index in indices])
        self._below = array("q", accumulate(counts[index] for index in indices))

    @classmethod
    def from_samples(cls, samples: Sequence[int]) -> Histogram:
        """Return the histogram of `samples` in nanoseconds.

        Raises:
            InternalError: a sample is negative or above `MAX_VALUE`.
        """
        if not samples:
            return cls(_new(), minimum=0, maximum=0)

        low, high = min(samples), max(samples)
        if low < 0 or high > MAX_VALUE:
            raise InternalError(f"a duration of {low if low < 0 else high} ns is not between 0 and an hour")

        hdr = _new()
        # Samples of one bucket are counted here first: `record_value` takes 1.8 us.
        for value, count in Counter(each >> (s := _SHIFTS[each.bit_length()]) << s for each in samples).items():
            hdr.record_value(value, count)

        return cls(hdr, minimum=low, maximum=high)

    @classmethod
    def merged(cls, histograms: Iterable[Histogram]) -> Histogram:
        """Return the histogram of the samples of all `histograms`."""
        hdr = _new()
        parts = [each for each in histograms if each.count]
        for each in parts:
            hdr.add(_decode(each.payload))

        return cls(
            hdr,
            minimum=min((each.min for each in parts), default=0),
            maximum=max((each.max for each in parts), default=0),
        )

    @classmethod
    def from_json(cls, value: Any) -> Histogram:
        """Return the histogram of `to_json`. Raises `UsageError` for another layout, or if it is damaged."""
        try:
            payload, count, low, high = (value[key] for key in ("hdr", "count", "min", "max"))
            hdr = _decode(payload)
        except UsageError:
            raise
        except _DAMAGES as exc:
            raise UsageError("a histogram is damaged") from exc

        if not all(isinstance(each, int) for each in (count, low, high)) or not 0 <= low <= high <= MAX_VALUE:
            raise UsageError("a histogram is damaged")

        histogram = cls(hdr, minimum=low, maximum=high)
        buckets = histogram._tops
        if hdr.get_total_count() != count or (count and (_top(low), _top(high)) != (buckets[0], buckets[-1])):
            raise UsageError("a histogram is damaged: its count, minimum or maximum differs from its samples")

        return histogram

    def to_json(self) -> dict[str, Any]:
        """Return the count, exact minimum and maximum, and the base64 text that HdrHistogram's tools decode."""
        return {"count": self.count, "min": self.min, "max": self.max, "hdr": self.payload}

    def value_at(self, quantile: float) -> int:
        """Return the nearest-rank `quantile` (0 to 1): the top of its bucket, at most `max`; 0 without samples."""
        if not self.count:
            return 0
        if quantile <= 0:
            return self.min

        rank = max(self._rank(quantile), 1)
        return max(min(self._tops[bisect_left(self._below, rank)], self.max), self.min)

    def quantile(self, quantile: float) -> int | None:
        """Return the `value_at` the quantile; None unless at least `MIN_BEYOND` samples are beyond it."""
        return self.value_at(quantile) if self.count - self._rank(quantile) >= MIN_BEYOND else None

    def _rank(self, quantile: float) -> int:
        return math.ceil(round(quantile * self.count, 6))  # 0.07 * 100 is 7.000000000000001

    @cached_property
    def mean(self) -> float:
        """The mean in nanoseconds, within the 3 digits of the buckets; 0 without samples."""
        return sum(middle * count for middle, count in self.weights()) / self.count if self.count else 0.0

    @cached_property
    def deviation(self) -> float:
        """The standard deviation in nanoseconds; 0 without samples."""
        if not self.count:
            return 0.0

        return math.sqrt(sum((middle - self.mean) ** 2 * count for middle, count in self.weights()) / self.count)

    def spectrum(self, ticks: int = 5) -> Iterator[tuple[float, int, int]]:
        """Yield (quantile, value, samples up to it), `ticks` times per halving of the distance to 1, and at 1."""
        if not self.count:
            return

        level = 0.0
        for top, below in zip(self._tops, self._below, strict=True):
            while below / self.count >= level and below < self.count:
                yield level, min(top, self.max), below
                # As HdrHistogram's PercentileIterator does it: each halving of the distance to 1 has `ticks` steps.
                level += 1 / (ticks * 2 ** (math.floor(-math.log2(1 - level)) + 1))

        yield 1.0, self.max, self.count

    def weights(self) -> Iterator[tuple[int, int]]:
        """Yield the middle of each bucket with samples, and their number, in ascending order."""
        before = 0
        for top, below in zip(self._tops, self._below, strict=True):
            width = 1 << _SHIFTS[top.bit_length()]
            yield top + 1 - width + width // 2, below - before  # the middle, as HdrHistogram rounds it
            before = below

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], Histogram], tuple[dict[str, Any]]]:
        # The counts of hdrhistogram are a ctypes array, which cannot be pickled.
        return type(self).from_json, (self.to_json(),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self.to_json() == other.to_json()


def _new() -> HdrHistogram:
    return HdrHistogram(*_LAYOUT)


def _decode(payload: str) -> HdrHistogram:
    encoded = HdrHistogramEncoder.decode(payload)
    head = encoded.payload
    layout = head.lowest_trackable_value, head.highest_trackable_value, head.significant_figures
    if layout != _LAYOUT:
        # hdrhistogram would add each count at the lower edge of its bucket.
        text = "{} to {} at {} digits, not {} to {} at {}".format(*layout, *_LAYOUT)
        raise UsageError(f"a histogram has another layout ({text}): it cannot be merged exactly")

    return HdrHistogram(*_LAYOUT, hdr_payload=encoded)


def _top(value: int) -> int:
    """Return the largest value in the bucket of `value`."""
    shift = _SHIFTS[value.bit_length()]
    return (value >> shift << shift) + (1 << shift) - 1
