"""The text forms of HdrHistogram, as its readers take them."""

from __future__ import annotations

from pathlib import Path

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from anyecho.measure.hdr_text import interval_log, percentile_distribution
from anyecho.measure.histogram import MAX_VALUE, Histogram
from tests.measure.results import result


def test_the_interval_log_is_read_back_with_its_tags_and_times(tmp_path: Path) -> None:
    runs = [result(2), result(1)]
    path = tmp_path / "a.hlog"
    path.write_text("".join(f"{line}\n" for line in interval_log(runs)))
    reader = HistogramLogReader(str(path), HdrHistogram(1, MAX_VALUE, 3))
    found = []
    while histogram := reader.get_next_interval_histogram():
        found.append((histogram.get_tag(), histogram.get_total_count(), histogram.get_start_time_stamp() / 1000))
    reader.close()

    assert found == [(tag, 3000, run.started_at) for run in runs[::-1] for tag in (None, "uncorrected", "lag")]


def test_the_interval_log_has_the_header_that_its_readers_want() -> None:
    lines = [*interval_log([result()])]
    assert lines[1:4] == [
        "#[Histogram log format version 1.3]",
        "#[StartTime: 1790000001.000 (seconds since epoch), 2026-09-21T14:13:21Z]",
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
    ]
    assert [line.partition("HIST")[0] for line in lines[4:]] == [
        "0.000,3.000,30.000,",
        "Tag=uncorrected,0.000,3.000,0.300,",
        "Tag=lag,0.000,3.000,1.500,",
    ]


def test_an_empty_histogram_is_not_in_the_log() -> None:
    empty = Histogram.from_samples([])
    lines = [*interval_log([result(lag=empty, latency=empty)])]
    assert [line[:15] for line in lines[4:]] == ["Tag=uncorrected"]


def test_the_percentile_distribution_is_that_of_the_java_tool() -> None:
    # Values of HistogramLogProcessor of HdrHistogram 2.2.2 for the lag of these two results.
    lag = Histogram.merged(each.lag for each in (result(), result(2)))
    lines = [*percentile_distribution(lag)]
    assert lines[:2] == ["       Value     Percentile TotalCount 1/(1-Percentile)", ""]
    assert [line.split()[1] for line in lines[2:9]] == [
        *("0.000000000000", "0.100000000000", "0.200000000000", "0.300000000000"),
        *("0.400000000000", "0.500000000000", "0.550000000000"),
    ]
    assert lines[-4:] == [
        "    1500.000 1.000000000000       6000",
        "#[Mean    =       15.229, StdDeviation   =      120.490]",
        "#[Max     =     1500.000, Total count    =         6000]",
        "#[Buckets =           32, SubBuckets     =         2048]",
    ]
