"""Lines on a standard output whose reader is slow: none is lost, and the event loop goes on."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest
from anyio import Event, create_task_group, fail_after, to_thread

from anyecho.cli.output import Output
from anyecho.errors import LocalError
from anyecho.net.threads import NoThreadError
from tests.support.peers import SOON
from tests.support.pipes import unread_pipe
from tests.support.tasks import wait_all_tasks_blocked


async def test_lines_are_kept_while_the_pipe_is_full_and_written_in_order() -> None:
    first, last = "x" * 100_000, "last"
    has_room = Event()

    async def wait_for_room() -> None:
        await output.room()
        has_room.set()

    with unread_pipe() as (read_end, write_end), fail_after(SOON):
        output = Output(write_end)
        output.write([first])
        text = os.read(read_end, 1 << 20)
        output.write([last])
        async with create_task_group() as tasks:
            tasks.start_soon(wait_for_room)
            await wait_all_tasks_blocked()
            assert not has_room.is_set()
            tasks.start_soon(output.run)
            while not text.endswith(b"last\n"):
                text += await to_thread.run_sync(os.read, read_end, 1 << 20)
            await has_room.wait()
            await output.aclose()

    assert text.lstrip(b"\n").decode() == f"{first}\n{last}\n"


@pytest.mark.parametrize("threads", [True, False])
async def test_a_closed_pipe_is_an_error_of_this_machine(threads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_thread(*_: object) -> NoReturn:
        raise NoThreadError

    if not threads:
        monkeypatch.setattr("anyecho.net.threads.run_in_thread", no_thread)
    with unread_pipe() as (read_end, write_end), fail_after(SOON):
        output = Output(write_end)
        output.write(["x" * 100_000])
        os.dup2(0, read_end)  # closes the only read end
        with pytest.raises(LocalError, match=r"^cannot write to standard output: Broken pipe$"):
            await output.run()
