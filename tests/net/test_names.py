"""Host names: look-ups that never end stop nothing else."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest
from anyio import create_task_group, fail_after, move_on_after, to_thread, wait_all_tasks_blocked

import anyecho
from anyecho.errors import ConnectError
from anyecho.measure.options import ConnectOptions
from anyecho.net import names
from anyecho.net.names import resolve


@pytest.fixture
def dead_name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Look-ups of ``*.dead`` do not return until the test ends."""
    getaddrinfo, ended = socket.getaddrinfo, Event()

    def hang(host: str, *args: Any, **options: Any) -> Any:
        if host.endswith(".dead") and not options:
            ended.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return getaddrinfo("127.0.0.1" if host == "alive" and not options else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    yield
    ended.set()


async def test_dead_look_ups_stop_neither_other_threads_nor_other_look_ups(dead_name_server: None) -> None:
    """anyio's default limiter has 40 tokens, which abandoned threads keep on trio."""

    async def give_up(host: str) -> None:
        with move_on_after(0.2):
            await resolve(host, 1)

    async with create_task_group() as tasks:
        for number in range(45):
            tasks.start_soon(give_up, f"{number}.dead")

    with fail_after(10):
        assert await to_thread.run_sync(os.getpid) == os.getpid()
        assert await resolve("alive", 1) == [(socket.AF_INET, ("127.0.0.1", 1))]


async def test_a_look_up_that_gets_no_thread_obeys_its_timeout(
    dead_name_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names.look_up_limiter(), "total_tokens", 1)
    options = ConnectOptions(timeout=0.2)
    with fail_after(10):
        async with create_task_group() as tasks:
            tasks.start_soon(resolve, "first.dead", 1)
            await wait_all_tasks_blocked()
            for address in ("tcp://second.dead:1", "udp://second.dead:1"):
                with pytest.raises(ConnectError, match=r"no answer within 200ms$"):
                    await anyecho.connect(address, options=options)
            tasks.cancel_scope.cancel()
