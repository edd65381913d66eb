"""Fixtures of the server tests: each test runs on both engines, which must behave the same."""

from __future__ import annotations

import pytest

from anyecho.net import poller
from anyecho.server.options import ServeOptions
from tests.support.certificates import Files, files_in
from tests.support.machine import skip

ENGINES = ("tasks", "events")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return files_in(tmp_path_factory.mktemp("tls"))


@pytest.fixture(autouse=True, params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The default engine of every server in these tests, server processes included."""
    name: str = request.param
    if name == "events" and not poller.has_epoll():
        skip("epoll")
    defaults = ServeOptions.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "engine", name)
    monkeypatch.setenv("ANYECHO_ENGINE", name)
    return name
