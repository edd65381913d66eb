"""The options that divide a load: shards, times, and what excludes what."""

from __future__ import annotations

from typing import Any

import pytest

from anyecho.errors import UsageError
from anyecho.measure.shard_options import ShardOptions

NOW = 1_769_860_800.0  # 2026-01-31T12:00:00Z


@pytest.mark.parametrize(("text", "part"), [(None, (0, 1)), ("1/1", (0, 1)), ("1/4", (0, 4)), ("4/4", (3, 4))])
def test_a_shard_is_a_number_and_how_many_there_are(text: str | None, part: tuple[int, int]) -> None:
    assert ShardOptions(shard=text).part == part


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (None, None),
        ("2026-01-31T12:00:07Z", NOW + 7),
        ("2026-01-31T13:00:07.5+01:00", NOW + 7.5),
        ("1769860801", NOW + 1),
        ("1769860801.25", NOW + 1.25),
        ("+10s", NOW + 10),
        ("+500ms", NOW + 0.5),
    ],
)
def test_a_start_is_a_date_with_an_offset_or_seconds(text: str | None, start: float | None) -> None:
    assert ShardOptions(start_at=text).start(NOW) == start


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"processes": 0}, "processes must be 1 or more, not 0"),
        ({"shard": "0/4"}, "shard must be a number and how many there are, like 1/4 to 4/4, not '0/4'"),
        ({"shard": "5/4"}, "shard must be a number and how many there are, like 1/4 to 4/4, not '5/4'"),
        ({"shard": "1"}, "shard must be a number and how many there are, like 1/4 to 4/4, not '1'"),
        ({"processes": 2, "dask": "tcp://a:1"}, "processes and dask exclude each other"),
        ({"shard": "1/2", "dask": "tcp://a:1"}, "shard and dask exclude each other"),
        (
            {"processes": 2, "start_at": "+1s"},
            "start_at excludes processes, whose shards wait for each other",
        ),
        (
            {"start_at": "soon"},
            "start_at 'soon' is not a time: write like 2026-01-31T12:00:00Z, 1769860800 or +10s",
        ),
        (
            {"start_at": "2026-01-31T12:00:00"},
            "start_at '2026-01-31T12:00:00' is not a time: write like 2026-01-31T12:00:00Z, 1769860800 or +10s",
        ),
        ({"start_at": "1769860799"}, "start_at 1769860799 is 1.0 s in the past"),
    ],
)
def test_wrong_values_are_errors_of_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        ShardOptions(**options).start(NOW)
    assert str(caught.value) == line
