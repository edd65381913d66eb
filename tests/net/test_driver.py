"""How an event loop calls the Poller: on each loop, and on a loop without readers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
import trio
from anyio import CancelScope, create_task_group, fail_after, move_on_after
from anyio.lowlevel import checkpoint, current_token

from anyecho.address import TCPAddress
from anyecho.client.client import connect
from anyecho.net.driver import drive, make_waiter
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.conftest import BACKENDS
from tests.support.machine import needs_epoll
from tests.support.tasks import wait_all_tasks_blocked


class Bug(Exception):
    """Raised on purpose."""


class BaseBug(BaseException):
    """Not caught by `except Exception`; asyncio and uvloop only log it when a callback raises it."""


class Pipe:
    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)

    def write(self) -> None:
        os.write(self.write_end, b"x")

    def close(self) -> None:
        os.close(self.read_end)
        os.close(self.write_end)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture(params=["readers", "no readers"])
def readers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With "no readers", asyncio's loop refuses them, as the proactor of Windows does."""
    name: str = request.param
    if name == "no readers":

        def refuse(*_: object) -> None:
            raise NotImplementedError

        monkeypatch.setattr(asyncio.SelectorEventLoop, "add_reader", refuse)
    return name


#: anyio waits for a descriptor by the loop's own readers or, on asyncio only, by a thread with a selector.
waits = pytest.mark.parametrize(
    ("anyio_backend", "readers"),
    [*((backend, "readers") for backend in BACKENDS.values()), (BACKENDS["asyncio"], "no readers")],
    ids=[*BACKENDS, "no readers"],
    indirect=True,
)


@pytest.mark.usefixtures("readers")
@waits
async def test_a_turn_is_called_whenever_the_descriptor_is_readable(pipe: Pipe) -> None:
    taken = 0

    def turn() -> bool:
        nonlocal taken
        taken += len(os.read(pipe.read_end, 1))
        return False

    async with create_task_group() as tasks:
        tasks.start_soon(drive, pipe.read_end, turn)
        for expected in (1, 2, 3):
            pipe.write()
            with fail_after(5):
                while taken < expected:
                    await checkpoint()
        tasks.cancel_scope.cancel()


@pytest.mark.usefixtures("readers")
@waits
async def test_a_turn_that_returns_true_is_called_again_after_tasks_ran(pipe: Pipe) -> None:
    """The descriptor is not readable any more: only the result of a turn causes the next turn."""
    order: list[str] = []

    def turn() -> bool:
        if "turn" not in order:
            os.read(pipe.read_end, 1)
        order.append("turn")
        return order.count("turn") < 4

    pipe.write()
    with fail_after(5):
        async with create_task_group() as tasks:
            tasks.start_soon(drive, pipe.read_end, turn)
            while order.count("turn") < 4:
                await checkpoint()
                order.append("task")
            tasks.cancel_scope.cancel()

    turns = [index for index, word in enumerate(order) if word == "turn"]
    assert len(turns) == 4
    # trio shuffles ready tasks: the last turn of one pass and the first of the next may be adjacent.
    assert all("task" in order[first:third] for first, third in zip(turns, turns[2:], strict=False))


@pytest.mark.usefixtures("readers")
@waits
async def test_a_pass_of_the_loop_calls_at_most_one_turn(pipe: Pipe) -> None:
    """The descriptor stays readable and each turn returns true: both cause the next turn, which is called once."""
    turns = passes = 0

    def turn() -> bool:
        nonlocal turns
        turns += 1
        return True

    pipe.write()
    with fail_after(5):
        async with create_task_group() as tasks:
            tasks.start_soon(drive, pipe.read_end, turn)
            while not turns:
                await checkpoint()
            turns = 0
            while passes < 50:
                await checkpoint()
                passes += 1
            tasks.cancel_scope.cancel()

    assert 20 < turns <= passes + 2


async def test_no_turn_is_called_after_a_cancellation(pipe: Pipe) -> None:
    turns = 0

    def turn() -> bool:
        nonlocal turns
        turns += 1
        return True

    with CancelScope() as scope:
        async with create_task_group() as tasks:
            tasks.start_soon(drive, pipe.read_end, turn)
            pipe.write()
            with fail_after(5):
                while not turns:
                    await checkpoint()
            scope.cancel()
    before = turns
    for _ in range(10):
        await checkpoint()

    assert turns == before


@pytest.mark.usefixtures("readers")
@waits
@pytest.mark.parametrize("bug", [Bug, BaseBug])
async def test_an_exception_in_a_turn_is_raised_by_drive(bug: type[BaseException], pipe: Pipe) -> None:
    def turn() -> bool:
        raise bug

    pipe.write()
    with fail_after(5), pytest.raises(bug):
        await drive(pipe.read_end, turn)

    if hasattr(loop := current_token().native_token, "remove_reader"):
        assert not loop.remove_reader(pipe.read_end)


@needs_epoll
async def test_an_exception_in_a_turn_is_raised_by_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with fail_after(5), pytest.raises(Bug):
        async with open_server("tcp://127.0.0.1:0") as server:

            def fail(*_: object) -> None:
                raise Bug

            monkeypatch.setattr("anyecho.net.readiness.Watch.dispatch", fail)
            async with await connect(server.addresses[0]):
                await server.wait_closed()


@pytest.mark.parametrize("engine", ["auto", "tasks"])
def test_a_callback_can_use_anyio_on_a_loop_that_anyio_did_not_start(engine: str) -> None:
    """A limit ends the connection inside a turn, which reads the time from anyio."""

    async def main() -> None:
        options = ServeOptions(max_bytes=3, engine="tasks" if engine == "tasks" else "auto", linger=5.0)
        async with open_server("tcp://127.0.0.1:0", options=options) as server:
            address = server.addresses[0]
            assert isinstance(address, TCPAddress)
            reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
            writer.write(b"abcdef")
            assert await asyncio.wait_for(reader.read(), 5) == b"abc"
            writer.close()
            await writer.wait_closed()
            while server.stats.active:  # noqa: ASYNC110 - there is no event for it, by design
                await asyncio.sleep(0.001)
            assert server.stats.closed == {"bytes": 1}

    asyncio.run(main())


async def test_a_waiter_wakes_the_task_that_waits_and_no_later_one() -> None:
    waiter = make_waiter()
    waiter.wake()
    for _ in range(2):
        woken: list[bool] = []

        async def wait(woken: list[bool] = woken) -> None:
            await waiter.wait()
            woken.append(True)

        with fail_after(5):
            async with create_task_group() as tasks:
                tasks.start_soon(wait)
                await wait_all_tasks_blocked()
                assert not woken
                waiter.wake()
                waiter.wake()
        assert woken


async def test_a_waiter_whose_task_was_cancelled_wakes_the_next_one() -> None:
    waiter = make_waiter()
    with CancelScope() as scope:
        scope.cancel()
        await waiter.wait()
    assert scope.cancelled_caught
    with move_on_after(0.01) as scope:
        await waiter.wait()
    assert scope.cancelled_caught
    waiter.wake()

    with fail_after(5):
        async with create_task_group() as tasks:
            tasks.start_soon(waiter.wait)
            await wait_all_tasks_blocked()
            waiter.wake()


async def test_a_task_that_is_woken_and_cancelled_in_one_pass_can_wait_again() -> None:
    waiter = make_waiter()
    for in_order in (True, False):
        with fail_after(5):
            async with create_task_group() as tasks:
                tasks.start_soon(waiter.wait)
                await wait_all_tasks_blocked()
                for act in (waiter.wake, tasks.cancel_scope.cancel)[:: 1 if in_order else -1]:
                    act()
        waiter.wake()


def test_trio_raises_no_keyboardinterrupt_while_a_waiter_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    protected = []

    def current_task() -> trio.lowlevel.Task:
        protected.append(trio.lowlevel.currently_ki_protected())
        return trio.lowlevel.current_task()

    async def main() -> None:
        assert not trio.lowlevel.currently_ki_protected()
        with move_on_after(0.01):
            await make_waiter().wait()

    monkeypatch.setattr("anyecho.net.trio_waiter.current_task", current_task)
    trio.run(main)
    assert protected == [True]
