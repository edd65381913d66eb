"""What a result says about its machine and its generator, on systems that tell less than Linux."""

from __future__ import annotations

import gc
import os
import platform
from pathlib import Path
from unittest.mock import Mock

import pytest

from anyecho.errors import UsageError
from anyecho.measure.generator import cores_available, pinned, without_gc
from anyecho.measure.machine import MachineState
from anyecho.measure.text import machine_text


def test_facts_that_a_system_does_not_tell_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a BSD: no /proc, no affinity, no load average."""
    for name in ("sched_getaffinity", "sched_setaffinity", "getloadavg"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(Path, "read_text", Mock(side_effect=FileNotFoundError))
    monkeypatch.setattr(platform, "system", lambda: "FreeBSD")
    monkeypatch.setattr(platform, "release", lambda: "14.1")
    monkeypatch.setattr(platform, "processor", lambda: "amd64")
    assert machine_text(MachineState.now().until_now()) == "FreeBSD 14.1, amd64, 6 cores"
    assert cores_available() == 6


def test_a_load_on_chosen_cores_is_refused_where_no_process_can_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with pytest.raises(UsageError, match=r"^cpu has no effect: this system cannot pin a process$"), pinned("0"):
        pytest.fail("entered")


@pytest.mark.parametrize("is_enabled", [True, False])
def test_garbage_is_collected_after_a_load_only_if_it_was_before(is_enabled: bool) -> None:
    try:
        if not is_enabled:
            gc.disable()
        with without_gc():
            assert not gc.isenabled()
        assert gc.isenabled() == is_enabled
    finally:
        gc.enable()
