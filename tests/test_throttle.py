"""A throttled log: one line in ten seconds, with the count of those left out."""

from __future__ import annotations

import logging

import pytest

from anyecho import throttle
from anyecho.throttle import ThrottledLog


def test_a_throttled_log_writes_a_line_with_the_count_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr(throttle, "monotonic", lambda: now)
    log = ThrottledLog(logging.getLogger("anyecho.server"))
    for now in (0.0, 1.0, 9.9, 10.0, 19.0, 25.0):
        log.warn("rejected %s", f"127.0.0.1:{now:g}")

    assert caplog.messages == [
        "rejected 127.0.0.1:0 (1 times)",
        "rejected 127.0.0.1:10 (3 times)",
        "rejected 127.0.0.1:25 (2 times)",
    ]
