"""The three words, and what runs when one of them is said."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
import trio
from anyio.lowlevel import checkpoint

from anyecho import backends
from anyecho.backends import BACKENDS, Backend, run
from anyecho.errors import BackendError, StartError, UsageError
from tests import conftest


async def whose_loop() -> str:
    """The package that the running event loop comes from."""
    try:
        loop: object = asyncio.get_running_loop()
    except RuntimeError:
        loop = trio.lowlevel.current_trio_token()

    return type(loop).__module__.partition(".")[0]


async def never() -> None:
    pytest.fail("it was run")


def without(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Take the package `missing` away."""
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == missing else object())


def test_there_are_three_words_and_the_suite_knows_them_all() -> None:
    assert BACKENDS == ("asyncio", "uvloop", "trio")
    assert tuple(conftest.BACKENDS) == BACKENDS


def test_the_loop_is_what_the_word_says(backend: Backend) -> None:
    assert run(whose_loop, backend=backend) == backend


def test_the_word_is_asyncio_unless_another_is_said() -> None:
    assert run(whose_loop) == "asyncio"


def test_what_main_returns_is_returned(backend: Backend) -> None:
    async def add(augend: int, addend: int) -> int:
        await checkpoint()
        return augend + addend

    assert run(add, 40, 2, backend=backend) == 42


def test_what_main_raises_is_raised_bare(backend: Backend) -> None:
    error = LookupError("main's own")

    async def fail() -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        run(fail, backend=backend)

    assert caught.value is error


def test_a_run_can_follow_another(backend: Backend) -> None:
    assert [run(whose_loop, backend=backend) for _ in range(2)] == [backend, backend]


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("uvloop", "uvloop is not installed: pip install 'anyecho[uvloop]'"),
        ("trio", "trio is not installed: pip install trio"),
    ],
)
def test_what_is_not_installed_is_an_error_with_the_command_that_installs_it(
    backend: Backend, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, backend)
    with pytest.raises(BackendError) as caught:
        run(never, backend=backend)

    assert str(caught.value) == message
    assert isinstance(caught.value, StartError)


@pytest.mark.parametrize(("backend", "missing"), [("asyncio", "uvloop"), ("asyncio", "trio"), ("trio", "uvloop")])
def test_nothing_is_missed_that_is_not_asked_for(
    backend: Backend, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, missing)

    assert run(whose_loop, backend=backend) == backend


@pytest.mark.parametrize("word", ["twisted", "", "Trio", "asyncio "])
def test_an_unknown_word_is_the_callers_fault(word: str) -> None:
    with pytest.raises(UsageError) as caught:
        run(never, backend=cast("Backend", word))

    assert str(caught.value) == f"no backend {word!r}; there are asyncio, uvloop, trio"
