"""The suite's constitution.

* Loopback only, port 0 only; a path of a Unix socket lies in a directory made for the test.
* The backends are listed here, once; nothing else knows that there are any. So are the carriers.
* Nothing sleeps to wait for a state: what is waited for is an event, a line, a byte, within a time limit.
* Failures are injected: an errno into a system call, a limit of descriptors, a signal to a real process.
* ``--fallback`` runs all of it once more without epoll, real processes included.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from anyecho.address import Address, TCPAddress, UnixAddress
from anyecho.net.poller import Fallback, Poller, open_poller
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.process import Processes
from tests.without_epoll import remove_epoll

BACKENDS = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
CARRIERS = ("tcp", "unix")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fallback", action="store_true", help="run without epoll, as on a system that has none")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fallback"):
        remove_epoll()


@pytest.fixture(params=list(BACKENDS.values()), ids=list(BACKENDS))
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """What anyio's plugin runs a test on."""
    return request.param


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    """The word that a real process is given."""
    word: str = request.param
    return word


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose name leaves room for that of a socket: pytest's own can fill all 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="ae"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(params=CARRIERS)
def carrier(request: pytest.FixtureRequest, short_path: Path) -> Address:
    """An address to listen on, of each kind."""
    if request.param == "unix":
        return UnixAddress(path=str(short_path / "echo"))

    return TCPAddress(host="127.0.0.1", port=0)


@pytest.fixture
async def poller() -> AsyncIterator[Poller | Fallback]:
    async with open_poller() as poller:
        yield poller


@pytest.fixture
async def server(carrier: Address) -> AsyncIterator[Server]:
    """A server on each carrier, which does not wait long for anybody."""
    async with open_server(carrier, options=ServeOptions(linger=0.5)) as server:
        yield server


@pytest.fixture
def processes(request: pytest.FixtureRequest) -> Iterator[Processes]:
    """Starts real ``anyecho`` processes; none outlives the test."""
    processes = Processes(fallback=request.config.getoption("--fallback"))
    yield processes
    processes.close()
