"""Rules and fixtures of the test suite.

* Loopback only, port 0 only; a Unix socket is in a directory made for the test.
* The backends and carriers are listed here and nowhere else.
* Tests do not sleep to wait for a state: they wait for an event, a line or a byte, within a time limit.
* Failures are injected: an errno into a system call, a descriptor limit, a signal to a real process.
* Results do not depend on the machine: environment variables that change programs are removed. A test that needs
  more than Python checks for it first (`support.machine`), and is skipped with the reason.
* The mark ``by_turns`` runs each case on a single backend, if the backend makes no difference (`support.turns`).
* ``--fallback`` runs everything without epoll, real processes included.
* The mark ``fault`` puts a test into the fault table, which ``--fault-table`` prints (`support.fault_table`).
"""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from anyecho.address import Address, TCPAddress, UnixAddress
from anyecho.client.options import ConnectOptions
from anyecho.net.poller import Fallback, Poller, open_poller
from anyecho.net.tls.contexts import TLSClientOptions
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.support.certificates import Files, files_in
from tests.support.machine import short_directory
from tests.support.process import Processes
from tests.support.turns import AXES, out_of_turn
from tests.support.without_epoll import remove_epoll

pytest_plugins = ("tests.support.fault_table", "tests.support.strict_skips")

BACKENDS = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
CARRIERS = ("tcp", "unix")

#: Prefixes of variables that change anyecho, its help, its TLS or its standard error, or HTTP; they are removed.
FOREIGN_VARIABLES = (
    *("ANYECHO_", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_"),
    *("COLUMNS", "LINES", "TERM", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "TTY_"),
    *("SSL_CERT_", "SSLKEYLOGFILE", "OPENSSL_CONF"),
    *("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"),
    *("PYTHONWARNINGS", "PYTHONDEVMODE", "PYTHONASYNCIODEBUG"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fallback", action="store_true", help="run without epoll, as on a system that has none")
    parser.addoption("--by-turns", action="store_true", help="run each case on one backend, engine and carrier")
    parser.addoption("--by-turns-of", action="append", choices=AXES, default=[], help="one of these; repeatable")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fallback"):
        remove_epoll()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    axes = AXES if config.getoption("--by-turns") else config.getoption("--by-turns-of")
    dropped = out_of_turn(items, axes)
    items[:] = [item for item in items if item not in dropped]
    config.hook.pytest_deselected(items=list(dropped))


def pytest_collection_finish() -> None:
    # The collected suite is half a million objects, which each garbage collection would traverse again.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_foreign_variables() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(FOREIGN_VARIABLES):
                patch.delenv(name)
        yield


@pytest.fixture(params=list(BACKENDS.values()), ids=list(BACKENDS))
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The backend on which anyio's pytest plugin runs a test."""
    return request.param


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    """The value of ``--backend`` for a real process."""
    word: str = request.param
    return word


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path is short enough for a Unix socket in it."""
    with short_directory() as path:
        yield Path(path)


@pytest.fixture(params=CARRIERS)
def carrier(request: pytest.FixtureRequest, short_path: Path) -> Address:
    """An address to listen on, for each carrier."""
    if request.param == "unix":
        return UnixAddress(path=str(short_path / "echo"))

    return TCPAddress(host="127.0.0.1", port=0)


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Closes what a test enters, at its end."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
async def poller() -> AsyncIterator[Poller | Fallback]:
    async with open_poller() as poller:
        yield poller


@pytest.fixture
async def server(carrier: Address) -> AsyncIterator[Server]:
    """A server on each carrier, with a short linger."""
    async with open_server(carrier, options=ServeOptions(linger=0.5)) as server:
        yield server


@pytest.fixture
def processes(request: pytest.FixtureRequest) -> Iterator[Processes]:
    """Starts real ``anyecho`` processes, and ends them with the test."""
    processes = Processes(fallback=request.config.getoption("--fallback"))
    yield processes
    processes.close()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A CA and certificates, for a test that may change them."""
    return files_in(tmp_path)


@pytest.fixture
def ca_options(files: Files) -> ConnectOptions:
    """Client options that trust the CA of `files`."""
    return ConnectOptions(tls=TLSClientOptions(cacert=files.cacert))
