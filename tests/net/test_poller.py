"""The Poller's traps, each of which made a prototype sleep for ever, spin, or answer for somebody else."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from functools import partial

import pytest
from anyio import (
    BusyResourceError,
    CancelScope,
    ClosedResourceError,
    Event,
    create_task_group,
    fail_after,
    move_on_after,
    wait_all_tasks_blocked,
)
from anyio.lowlevel import checkpoint

from anyecho.net.fallback import Fallback, Registration
from anyecho.net.poller import Poller, open_poller
from anyecho.net.registration import PolledRegistration, Watch
from tests.net.pairs import KINDS, raw_pair
from tests.peers import SOON

needs_epoll = pytest.mark.skipif(not hasattr(select, "epoll"), reason="this system has no epoll")


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
async def epoll() -> AsyncIterator[Poller]:
    async with open_poller() as poller:
        assert isinstance(poller, Poller)
        yield poller


def quiet_pair(kind: str, opened: ExitStack) -> tuple[socket.socket, socket.socket]:
    peer, ours = (opened.enter_context(sock) for sock in raw_pair(kind))
    ours.setblocking(False)
    return peer, ours


def keep_busy(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.mark.parametrize("kind", KINDS)
async def test_an_edge_that_passed_is_not_missed(kind: str, poller: Poller | Fallback, opened: ExitStack) -> None:
    peer, ours = quiet_pair(kind, opened)
    registration = poller.register(ours)
    registration.may_read = registration.may_write = False
    peer.send(b"x")
    await wait_all_tasks_blocked()
    with fail_after(5):
        await registration.readable()
        await registration.writable()
    await registration.aclose()


async def test_a_connecting_socket_becomes_writable_before_anybody_waits(
    poller: Poller | Fallback, opened: ExitStack
) -> None:
    listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    sock = opened.enter_context(socket.socket())
    sock.setblocking(False)
    sock.connect_ex(listener.getsockname())
    registration = poller.register(sock)
    registration.may_write = False
    await wait_all_tasks_blocked()
    with fail_after(5):
        await registration.writable()
    await registration.aclose()


@pytest.mark.parametrize("way", ["readable", "writable"])
async def test_a_second_waiter_is_refused_and_the_first_unharmed(
    way: str, poller: Poller | Fallback, opened: ExitStack
) -> None:
    peer, ours = quiet_pair("unix", opened)
    registration = poller.register(ours)
    if way == "writable":
        _fill(ours)
    registration.may_read = registration.may_write = False
    async with create_task_group() as tasks:
        tasks.start_soon(getattr(registration, way))
        await wait_all_tasks_blocked()
        with pytest.raises(BusyResourceError):
            await getattr(registration, way)()
        peer.send(b"x")
        _empty(peer)


@pytest.mark.parametrize("way", ["readable", "writable"])
async def test_a_cancelled_wait_leaves_the_place_free(
    way: str, poller: Poller | Fallback, opened: ExitStack
) -> None:
    peer, ours = quiet_pair("unix", opened)
    registration = poller.register(ours)
    _fill(ours)
    registration.may_read = registration.may_write = False
    for _ in range(3):
        with move_on_after(0.01) as scope:
            await getattr(registration, way)()
        assert scope.cancelled_caught

    peer.send(b"x")
    _empty(peer)
    with fail_after(5):
        await getattr(registration, way)()


@pytest.mark.parametrize("way", ["readable", "writable"])
async def test_a_wakeup_that_nobody_took_is_not_taken_for_the_next(
    way: str, poller: Poller | Fallback, opened: ExitStack
) -> None:
    """Two events wake one wait; the next has to wait all the same."""
    peer, ours = quiet_pair("unix", opened)
    registration = poller.register(ours)
    for _ in range(3):
        _fill(ours)
        registration.may_read = registration.may_write = False
        async with create_task_group() as tasks:
            tasks.start_soon(getattr(registration, way))
            await wait_all_tasks_blocked()
            peer.send(b"x")
            _empty(peer)
            if isinstance(registration, PolledRegistration):
                registration.dispatch(select.EPOLLIN | select.EPOLLOUT)
                registration.dispatch(select.EPOLLIN | select.EPOLLOUT)
        ours.recv(1)

    await wait_all_tasks_blocked()
    _fill(ours)
    registration.may_read = registration.may_write = False
    with move_on_after(0.05) as scope:
        await getattr(registration, way)()
    assert scope.cancelled_caught


@needs_epoll
async def test_a_socket_that_a_stranger_closed_does_not_keep_its_number(epoll: Poller, opened: ExitStack) -> None:
    _, forgotten = quiet_pair("unix", opened)
    number = forgotten.fileno()
    epoll.register(forgotten)
    forgotten.close()
    sockets = [opened.enter_context(each) for each in socket.socketpair()]
    sockets.sort(key=lambda each: each.fileno() != number)
    assert sockets[0].fileno() == number
    registration = epoll.register(sockets[0])
    registration.may_read = False
    sockets[1].send(b"x")
    with fail_after(5):
        await registration.readable()


async def test_closing_wakes_both_waiters(poller: Poller | Fallback, opened: ExitStack) -> None:
    _, ours = quiet_pair("unix", opened)
    registration = poller.register(ours)
    _fill(ours)
    registration.may_read = registration.may_write = False
    async with create_task_group() as tasks:
        tasks.start_soon(_closed, registration, "readable")
        tasks.start_soon(_closed, registration, "writable")
        await wait_all_tasks_blocked()
        await registration.aclose()


async def _closed(registration: Registration, way: str) -> None:
    with pytest.raises(ClosedResourceError):
        await getattr(registration, way)()


@needs_epoll
async def test_events_for_an_old_socket_do_not_reach_the_new_one_of_its_number(
    epoll: Poller, opened: ExitStack
) -> None:
    """Two events in one batch; what handles the first closes the second's socket and opens another."""
    first_peer, first = quiet_pair("unix", opened)
    second_peer, second = quiet_pair("unix", opened)
    calls: list[str] = []
    watches: dict[str, Watch] = {}
    handled = Event()

    def replace(name: str, sock: socket.socket) -> None:
        """Whichever of the two comes first replaces the other."""
        if "new" in watches:
            calls.append(f"old {name}")
            return

        other_name, other = ("second", second) if name == "first" else ("first", first)
        number = other.fileno()
        watches[other_name].close()
        other.close()
        sockets = [opened.enter_context(each) for each in socket.socketpair()]
        new = next(each for each in sockets if each.fileno() == number)
        watches["new"] = epoll.watch(new, lambda: calls.append("new"))
        watches[name].close()
        handled.set()

    for name, sock in (("first", first), ("second", second)):
        watches[name] = epoll.watch(sock, partial(replace, name, sock))

    first_peer.send(b"x")
    second_peer.send(b"x")
    with fail_after(5):
        await handled.wait()
        await wait_all_tasks_blocked()

    assert calls == []


@needs_epoll
async def test_an_event_left_for_the_next_turn_does_not_reach_a_new_socket_of_its_number(
    epoll: Poller, opened: ExitStack
) -> None:
    """The first of two callbacks uses up the slice; before the next turn, the second's number is reused."""
    ours = {name: quiet_pair("unix", opened) for name in ("first", "second")}
    watches: dict[str, Watch] = {}
    calls: list[str] = []

    def take_long(name: str) -> None:
        calls.append(name)
        watches[name].close()
        keep_busy(0.003)

    for name, (_, sock) in ours.items():
        watches[name] = epoll.watch(sock, partial(take_long, name))
    for peer, _ in ours.values():
        peer.send(b"x")
    assert epoll.turn()
    (left,) = set(ours) - set(calls)
    number = ours[left][1].fileno()
    watches[left].close()
    ours[left][1].close()
    sockets = [opened.enter_context(each) for each in socket.socketpair()]
    new = next(each for each in sockets if each.fileno() == number)
    watch = epoll.watch(new, lambda: calls.append("new"))
    assert not epoll.turn()
    await wait_all_tasks_blocked()

    assert len(calls) == 1
    watch.close()


@needs_epoll
async def test_edge_triggered_events_left_over_by_a_slice_are_delivered(epoll: Poller, opened: ExitStack) -> None:
    peer, slow = quiet_pair("unix", opened)
    pairs = [quiet_pair("tcp", opened) for _ in range(3)]
    registrations = [epoll.register(sock) for _, sock in pairs]

    def take_long() -> None:
        watch.close()
        keep_busy(0.003)

    watch = epoll.watch(slow, take_long)
    await wait_all_tasks_blocked()  # that the sockets are writable has been reported
    for registration in registrations:
        registration.may_read = False
    for sock in (peer, *(each for each, _ in pairs)):
        sock.send(b"x")
    with fail_after(5):
        for registration in registrations:
            await registration.readable()


@needs_epoll
async def test_one_turn_takes_no_more_events_than_a_batch(epoll: Poller, opened: ExitStack) -> None:
    calls: list[int] = []
    watches: list[Watch] = []
    for number in range(200):

        def take(number: int = number) -> None:
            calls.append(number)
            watches[number].close()

        peer, ours = quiet_pair("unix", opened)
        watches.append(epoll.watch(ours, take))
        peer.send(b"x")

    epoll.turn()
    assert 0 < len(calls) <= 128
    with fail_after(5):
        while len(calls) < 200:
            await checkpoint()


@needs_epoll
async def test_a_callback_is_called_while_there_is_something_to_read(epoll: Poller, opened: ExitStack) -> None:
    peer, ours = quiet_pair("tcp", opened)
    got: list[bytes] = []
    done = Event()

    def take_one() -> None:
        got.append(ours.recv(1))
        if len(got) == 3:
            done.set()

    watch = epoll.watch(ours, take_one)
    peer.send(b"abc")
    with fail_after(5):
        await done.wait()

    assert got == [b"a", b"b", b"c"]
    watch.close()


@needs_epoll
async def test_what_is_pending_is_reported_again_after_a_handover(epoll: Poller, opened: ExitStack) -> None:
    peer, ours = quiet_pair("tcp", opened)
    epoll.register(ours)
    peer.send(b"x")
    await wait_all_tasks_blocked()  # the edge has been and gone
    called = Event()

    def once() -> None:
        watch.close()
        called.set()

    watch = epoll.watch(ours, once)
    with fail_after(5):
        await called.wait()


@needs_epoll
async def test_a_closed_watch_is_not_called_and_a_new_one_is(epoll: Poller, opened: ExitStack) -> None:
    """A mask of zero would not do: a hang-up is reported on that, and again, and again."""
    peer, ours = quiet_pair("tcp", opened)
    calls = 0
    called = Event()

    def count() -> None:
        nonlocal calls
        calls += 1
        called.set()
        watch.close()

    watch = epoll.watch(ours, count)
    watch.close()
    peer.send(b"x")
    peer.close()
    for _ in range(50):
        await checkpoint()
    assert calls == 0
    watch = epoll.watch(ours, count)
    with fail_after(5):
        await called.wait()
    assert calls == 1


@needs_epoll
async def test_callbacks_that_take_long_let_tasks_run(
    epoll: Poller, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six callbacks in one batch, each longer than a slice: others have their turn before the last."""
    order: list[str] = []
    peers = [quiet_pair("unix", opened) for _ in range(6)]
    watches: list[Watch] = []
    for number, (_, ours) in enumerate(peers):

        def busy(number: int = number) -> None:
            order.append("callback")
            watches[number].close()
            keep_busy(0.003)

        watches.append(epoll.watch(ours, busy))

    async def other() -> None:
        while order.count("callback") < 6:
            await checkpoint()
            order.append("task")

    async with create_task_group() as tasks:
        for peer, _ in peers:
            peer.send(b"x")
        tasks.start_soon(other)

    assert "task" in order[: len(order) - order[::-1].index("callback")]


@needs_epoll
async def test_a_poller_that_stops_wakes_its_waiters(opened: ExitStack) -> None:
    _, ours = quiet_pair("unix", opened)
    async with create_task_group() as tasks:
        with fail_after(5):
            async with open_poller() as poller:
                registration = poller.register(ours)
                registration.may_read = False
                tasks.start_soon(_closed, registration, "readable")
                await wait_all_tasks_blocked()


@needs_epoll
async def test_a_poller_works_on_while_its_block_is_cancelled(opened: ExitStack) -> None:
    peer, ours = quiet_pair("unix", opened)
    with CancelScope() as outside:
        async with open_poller() as poller:
            registration = poller.register(ours)
            outside.cancel()
            with CancelScope(shield=True), fail_after(5):
                registration.may_read = False
                await wait_all_tasks_blocked()
                peer.send(b"x")
                await registration.readable()


@needs_epoll
async def test_callbacks_without_end_let_tasks_run_too(epoll: Poller, opened: ExitStack) -> None:
    """Batch after batch, each shorter than a slice: nothing but the clock ends them."""
    peer, ours = quiet_pair("unix", opened)
    watch = epoll.watch(ours, lambda: None)  # reads nothing, so it is called again and again
    peer.send(b"x")
    with fail_after(SOON):
        for _ in range(40):
            await checkpoint()
    watch.close()


@needs_epoll
@pytest.mark.parametrize("way", ["readable", "writable"])
async def test_a_call_after_the_poller_has_stopped_is_refused(way: str, opened: ExitStack) -> None:
    _, ours = quiet_pair("unix", opened)
    async with open_poller() as poller:
        registration = poller.register(ours)

    registration.may_read = registration.may_write = False
    with fail_after(5):
        await _closed(registration, way)


async def test_nobody_waits_for_a_socket_that_is_being_closed(opened: ExitStack) -> None:
    """One is still leaving, so it is not closed yet; another comes: it must not be closed under that one."""
    _, ours = quiet_pair("unix", opened)
    _fill(ours)
    registration = Fallback().register(ours)
    registration.may_read = registration.may_write = False
    async with create_task_group() as tasks:
        tasks.start_soon(_closed, registration, "readable")
        await wait_all_tasks_blocked()
        tasks.start_soon(registration.aclose)
        await checkpoint()
        with fail_after(5):
            await _closed(registration, "writable")


def _fill(sock: socket.socket) -> None:
    with pytest.raises(BlockingIOError):
        while True:
            sock.send(bytes(65536))


def _empty(sock: socket.socket) -> None:
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            sock.recv(1 << 20)
