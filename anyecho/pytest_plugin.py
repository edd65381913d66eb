"""Fixtures for tests of clients: a server for each test, in a thread of its own.

pytest loads this module in every run. It imports pytest only, until a test uses a fixture.
"""

from __future__ import annotations

__all__ = ("echo_ca", "echo_server", "echo_server_factory")

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from anyecho.net.tls.generated import GeneratedAuthority
    from anyecho.threaded import ServerFactory, ThreadedServer


@pytest.fixture
def echo_server(echo_server_factory: ServerFactory) -> ThreadedServer:
    """An echo server on a free port of 127.0.0.1: `host`, `port`, `address`, `stats`, `connections`."""
    return echo_server_factory()


@pytest.fixture
def echo_server_factory(request: pytest.FixtureRequest) -> Iterator[ServerFactory]:
    """Starts servers: `echo_server_factory(*addresses, options=..., handler=..., backend=...)`."""
    from anyecho.threaded import ServerFactory

    with ExitStack() as opened:
        yield ServerFactory(opened, lambda: request.getfixturevalue("echo_ca"))


@pytest.fixture(scope="session")
def echo_ca(tmp_path_factory: pytest.TempPathFactory) -> GeneratedAuthority:
    """The CA of servers over TLS: `client_context()`, and the file `cacert`. Needs trustme."""
    from anyecho.net.tls.generated import GeneratedAuthority

    authority = GeneratedAuthority()
    authority.save(tmp_path_factory.mktemp("echo_ca") / "ca.pem")
    return authority
