"""`run` on each backend, and errors for missing or unknown backends."""

from __future__ import annotations

import asyncio
import os
from typing import cast

import pytest
import trio
from anyio.lowlevel import checkpoint

from anyecho import backends
from anyecho.backends import BACKENDS, Backend, run
from anyecho.errors import BackendError, StartError, UsageError
from tests import conftest


async def loop_package() -> str:
    """Return the package of the running event loop."""
    try:
        loop: object = asyncio.get_running_loop()
    except RuntimeError:
        loop = trio.lowlevel.current_trio_token()

    return type(loop).__module__.partition(".")[0]


async def never() -> None:
    pytest.fail("it was run")


def without(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Make the package `missing` look not installed."""
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == missing else object())


def test_the_suite_runs_on_all_backends() -> None:
    assert BACKENDS == ("asyncio", "uvloop", "trio")
    assert tuple(conftest.BACKENDS) == BACKENDS


def test_run_uses_the_event_loop_of_the_backend(backend: Backend) -> None:
    assert run(loop_package, backend=backend) == backend


def test_the_default_backend_is_asyncio() -> None:
    assert run(loop_package) == "asyncio"


def test_run_returns_the_result_of_main(backend: Backend) -> None:
    async def add(augend: int, addend: int) -> int:
        await checkpoint()
        return augend + addend

    assert run(add, 40, 2, backend=backend) == 42


def test_run_raises_the_error_of_main_without_a_group(backend: Backend) -> None:
    error = LookupError("main's own")

    async def fail() -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        run(fail, backend=backend)

    assert caught.value is error


def test_a_run_can_follow_another(backend: Backend) -> None:
    assert [run(loop_package, backend=backend) for _ in range(2)] == [backend, backend]


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("uvloop", "uvloop is not installed: pip install 'anyecho[uvloop]'"),
        ("trio", "trio is not installed: pip install trio"),
    ],
)
def test_a_missing_backend_is_an_error_with_the_command_to_install_it(
    backend: Backend, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, backend)
    with pytest.raises(BackendError) as caught:
        run(never, backend=backend)

    assert str(caught.value) == message
    assert isinstance(caught.value, StartError)


@pytest.mark.parametrize(("backend", "missing"), [("asyncio", "uvloop"), ("asyncio", "trio"), ("trio", "uvloop")])
def test_a_missing_backend_does_not_affect_another(
    backend: Backend, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, missing)

    assert run(loop_package, backend=backend) == backend


@pytest.mark.parametrize("word", ["twisted", "", "Trio", "asyncio "])
def test_an_unknown_backend_is_a_usage_error(word: str) -> None:
    with pytest.raises(UsageError) as caught:
        run(never, backend=cast("Backend", word))

    assert str(caught.value) == f"no backend {word!r}; there are asyncio, uvloop, trio"


def test_a_system_without_a_null_device_runs_each_backend(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Descriptors are counted with that device, which an empty root directory lacks."""
    monkeypatch.setattr(os, "devnull", "/absent/null")
    assert run(loop_package, backend=backend) == backend
