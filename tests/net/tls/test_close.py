"""The time limit of a TLS close, and the last send of a close whose limit ends while the event loop is stuck."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import trio
from anyio import create_task_group, to_thread
from trio.testing import MockClock

from anyecho.net.poller import Fallback, Poller, open_poller
from anyecho.net.tls import stream as tls_stream
from tests.support.certificates import tls_pair
from tests.support.conformance import fill
from tests.support.tasks import wait_all_tasks_blocked

LIMIT = 0.4


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_close_whose_limit_ends_in_a_stuck_loop_sends_close_notify(
    kind: str, poller: Poller | Fallback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer reads all while the loop is stuck, so the rest and the close_notify fit the send buffer."""
    monkeypatch.setattr(tls_stream, "CLOSE_TIMEOUT", LIMIT)
    client, server = await tls_pair(kind, poller)
    await fill(client)
    server._sock.setblocking(True)
    stuck = Event()

    def read_all() -> bytes:
        stuck.wait()
        return b"".join(iter(lambda: server._sock.recv(1 << 20), b""))

    async with create_task_group() as tasks:
        with ThreadPoolExecutor(1) as executor:
            result = executor.submit(read_all)
            tasks.start_soon(client.aclose)
            await wait_all_tasks_blocked()
            stuck.set()
            time.sleep(2 * LIMIT)  # noqa: ASYNC251 - what the test is about
            received = await to_thread.run_sync(result.result)

    server.records.feed(received)
    decrypted = 0
    while (data := server.records.receive(1 << 20)) != b"":  # empty at the close_notify
        assert data is not None or server.records.process_more(), f"no close_notify after {decrypted} bytes"
        decrypted += len(data or b"")
    assert decrypted == client.records.plaintext_queued
    await server.aclose()


@pytest.mark.parametrize(("stuck", "lasts"), [(0.0, 2.0), (5.0, 5.25)], ids=["running loop", "stuck loop"])
def test_a_close_to_a_peer_that_reads_nothing_takes_two_seconds(stuck: float, lasts: float) -> None:
    """In the time of a clock that jumps to the next deadline. After a gap, an eighth of the limit is added."""
    clock = MockClock(autojump_threshold=0)

    async def main() -> None:
        async with open_poller() as poller:
            client, server = await tls_pair("unix", poller)
            await fill(client)
            began = trio.current_time()
            async with create_task_group() as tasks:
                tasks.start_soon(client.aclose)
                await wait_all_tasks_blocked()
                clock.jump(stuck)
            assert trio.current_time() - began == pytest.approx(lasts)
            await server.aclose()

    trio.run(main, clock=clock)
