"""A descriptor limit too low for an event loop is an error of one line."""

from __future__ import annotations

import re

import pytest

from tests.support.process import Processes


@pytest.mark.parametrize("verb", ["send", "serve"])
def test_too_few_descriptors_for_an_event_loop_are_one_line(verb: str, backend: str, processes: Processes) -> None:
    process = processes.start(verb, "127.0.0.1:1", "--backend", backend, descriptors=7)

    assert process.wait() == 3
    line = rf"anyecho: an event loop of {backend} needs \d+ descriptors: Too many open files \(ulimit -n\)\n"
    assert re.fullmatch(line, process.errors())
