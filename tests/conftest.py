"""The suite's constitution.

* Loopback only, port 0 only; a path of a Unix socket lies in a directory made for the test.
* The backends are listed here, once; nothing else knows that there are any. So are the carriers.
* Nothing sleeps to wait for a state: what is waited for is an event, a line, a byte, within a time limit.
* Failures are injected: an errno into a system call, a limit of descriptors, a signal to a real process.
* The machine decides nothing: variables of the environment that programs act on are taken away, and what a test
  needs beyond Python is tried first (`tests.machine`), or the test is skipped with the reason.
* Where a backend has no part of its own, the mark ``by_turns`` runs each case on one of them (`tests.turns`).
* ``--fallback`` runs all of it once more without epoll, real processes included.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from anyecho.address import Address, TCPAddress, UnixAddress
from anyecho.net.poller import Fallback, Poller, open_poller
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.machine import short_directory
from tests.process import Processes
from tests.turns import out_of_turn
from tests.without_epoll import remove_epoll

BACKENDS = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
CARRIERS = ("tcp", "unix")

#: Prefixes of variables that change what anyecho, its help, its TLS or its standard error is: none is inherited.
FOREIGN_VARIABLES = (
    *("ANYECHO_", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_"),
    *("COLUMNS", "LINES", "TERM", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "TTY_"),
    *("SSL_CERT_", "SSLKEYLOGFILE", "OPENSSL_CONF"),
    *("PYTHONWARNINGS", "PYTHONDEVMODE", "PYTHONASYNCIODEBUG"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fallback", action="store_true", help="run without epoll, as on a system that has none")
    parser.addoption("--by-turns", action="store_true", help="run each case on one backend, engine and carrier")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fallback"):
        remove_epoll()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    dropped = out_of_turn(items, all_axes=config.getoption("--by-turns"))
    items[:] = [item for item in items if item not in dropped]
    config.hook.pytest_deselected(items=list(dropped))


@pytest.fixture(scope="session", autouse=True)
def _no_foreign_variables() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(FOREIGN_VARIABLES):
                patch.delenv(name)
        yield


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
    """A directory whose path leaves room for the name of a socket."""
    with short_directory() as path:
        yield Path(path)


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
