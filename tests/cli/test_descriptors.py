"""The descriptor limit: `serve` raises it, and one too low for an event loop is an error of one line."""

from __future__ import annotations

import re
import resource
from contextlib import ExitStack

import pytest

import anyecho
from tests.support.peers import dial, exchange, receive_all
from tests.support.process import Processes

TCP = "tcp://127.0.0.1:0"


@pytest.mark.parametrize("verb", ["send", "serve"])
@pytest.mark.by_turns("verb")
def test_too_few_descriptors_for_an_event_loop_are_one_line(verb: str, backend: str, processes: Processes) -> None:
    process = processes.start(verb, "127.0.0.1:1", "--backend", backend, descriptors=7)

    assert process.wait() == 3
    line = rf"anyecho: an event loop of {backend} needs \d+ descriptors: Too many open files \(ulimit -n\)\n"
    assert re.fullmatch(line, process.errors())


@pytest.mark.parametrize(("descriptors", "connections"), [(300, 236), (100, 50)])
def test_all_descriptors_but_64_or_half_are_for_connections(
    descriptors: int, connections: int, processes: Processes, opened: ExitStack
) -> None:
    [address] = processes.serve("-b", TCP, "--over-limit", "close", descriptors=descriptors).addresses
    for _ in range(connections):
        assert exchange(opened.enter_context(dial(address)), b"x") == b"x"

    assert receive_all(opened.enter_context(dial(address))) == b""


@pytest.mark.by_turns("anyio_backend")
async def test_serve_raises_the_soft_descriptor_limit_and_the_library_does_not(processes: Processes) -> None:
    lower = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (256, r.getrlimit(r.RLIMIT_NOFILE)[1]))\n"
    soft, hard = resource.prlimit(processes.serve("-b", TCP, before=lower).pid, resource.RLIMIT_NOFILE)
    assert soft == hard > 256

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] - 1, before[1]))
    try:
        async with anyecho.open_server(TCP):
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[0] - 1, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
