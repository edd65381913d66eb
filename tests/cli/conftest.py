"""Fixtures of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest

from anyecho.cli.main import main
from anyecho.server.options import ServeOptions
from anyecho.threaded import threaded_server
from tests.support.machine import short_directory, skip

#: Returns exit status, standard output and standard error.
Run: TypeAlias = Callable[..., tuple[int, bytes, str]]


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """The addresses of a server in a thread, by carrier: for tests of clients."""
    options = ServeOptions(unsafe_udp=True, udp_rate=None)
    with short_directory() as path:
        binds = ("tcp://127.0.0.1:0", "udp://127.0.0.1:0", f"unix:{path}/echo")
        with threaded_server(*binds, options=options) as server:
            yield {str(each).partition(":")[0]: str(each) for each in server.addresses}


@pytest.fixture(params=["tcp", "udp", "unix"])
def address(request: pytest.FixtureRequest, addresses: dict[str, str]) -> str:
    return addresses[request.param]


@pytest.fixture(params=["events", "tasks"])
def engine(request: pytest.FixtureRequest) -> str:
    """The value of ``--engine``."""
    if request.param == "events" and request.config.getoption("--fallback"):
        skip("epoll")
    word: str = request.param
    return word


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line as `Processes.run` does, but in this process: a start of Python would take 0.4 s."""

    def run(*arguments: str) -> tuple[int, bytes, str]:
        status = main(arguments)
        output, errors = capfd.readouterr()
        return status, output.encode(), errors

    return run
