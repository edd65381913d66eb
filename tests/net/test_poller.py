"""Mistakes of a poller: a missed edge, a spinning loop, events of a reused descriptor, tasks that starve."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import AsyncIterator
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
)
from anyio.lowlevel import checkpoint

from anyecho.net import exclusive
from anyecho.net.exclusive import ExclusivePoller
from anyecho.net.fallback import Fallback
from anyecho.net.poller import Poller, open_poller
from anyecho.net.readiness import READ, READ_EDGE, PolledRegistration, Registration, Watch
from tests.net.pairs import KINDS, raw_pair
from tests.support.machine import needs_epoll
from tests.support.peers import SOON
from tests.support.tasks import wait_all_tasks_blocked


@pytest.fixture
async def epoll(request: pytest.FixtureRequest) -> AsyncIterator[Poller]:
    async with open_poller(getattr(request, "param", None)) as poller:
        assert isinstance(poller, Poller)
        yield poller


def nonblocking_pair(kind: str, opened: ExitStack) -> tuple[socket.socket, socket.socket]:
    peer, ours = (opened.enter_context(sock) for sock in raw_pair(kind))
    ours.setblocking(False)
    return peer, ours


def keep_busy(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.mark.parametrize("kind", KINDS)
async def test_an_earlier_edge_is_not_missed(kind: str, poller: Poller | Fallback, opened: ExitStack) -> None:
    peer, ours = nonblocking_pair(kind, opened)
    registration = poller.register(ours)
    registration.may_read = registration.may_write = False
    peer.send(b"x")
    await wait_all_tasks_blocked()
    with fail_after(5):
        await registration.readable()
        await registration.writable()
    await registration.aclose()


async def test_a_connect_that_ends_before_the_wait_is_not_missed(
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


@pytest.mark.parametrize("polled", [True, False], ids=["poller", "fallback"])
@pytest.mark.parametrize("way", ["readable", "writable"])
async def test_a_second_waiter_is_refused_and_the_first_is_woken(
    way: str, polled: bool, poller: Poller | Fallback, opened: ExitStack
) -> None:
    peer, ours = nonblocking_pair("unix", opened)
    registration = (poller if polled else Fallback()).register(ours)
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
async def test_after_a_cancelled_wait_another_task_can_wait(
    way: str, poller: Poller | Fallback, opened: ExitStack
) -> None:
    peer, ours = nonblocking_pair("unix", opened)
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
async def test_a_second_event_does_not_end_the_next_wait(
    way: str, poller: Poller | Fallback, opened: ExitStack
) -> None:
    """Two events release the semaphore twice during one wait. The next call still has to wait."""
    peer, ours = nonblocking_pair("unix", opened)
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
async def test_a_number_closed_while_registered_can_be_registered_again(epoll: Poller, opened: ExitStack) -> None:
    _, forgotten = nonblocking_pair("unix", opened)
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
    _, ours = nonblocking_pair("unix", opened)
    registration = poller.register(ours)
    _fill(ours)
    registration.may_read = registration.may_write = False
    async with create_task_group() as tasks:
        tasks.start_soon(_closed, registration, "readable")
        tasks.start_soon(_closed, registration, "writable")
        await wait_all_tasks_blocked()
        for _ in range(2):
            await registration.aclose()


async def _closed(registration: Registration, way: str) -> None:
    with pytest.raises(ClosedResourceError):
        await getattr(registration, way)()


@pytest.mark.parametrize("polled", [True, False], ids=["poller", "fallback"])
async def test_a_call_that_returns_false_is_the_last_one(
    polled: bool, poller: Poller | Fallback, opened: ExitStack
) -> None:
    peer, ours = nonblocking_pair("unix", opened)
    peer.send(b"abc")
    received: list[bytes] = []

    def turn() -> bool:
        received.append(ours.recv(1))
        return len(received) < 2

    with fail_after(5):
        await (poller if polled else Fallback()).call_while_readable(ours, turn)
    await wait_all_tasks_blocked()
    assert received == [b"a", b"b"]


@pytest.mark.fault(
    row=28, injected="the callback of one socket replaces another, which has an event in the same batch"
)
@pytest.mark.parametrize("epoll", [Poller, ExclusivePoller], indirect=True)
@needs_epoll
async def test_events_of_a_closed_socket_do_not_reach_the_next_one_with_its_number(
    epoll: Poller, opened: ExitStack
) -> None:
    """Two events in one batch. The callback of the first closes the socket of the second and opens another."""
    first_peer, first = nonblocking_pair("unix", opened)
    second_peer, second = nonblocking_pair("unix", opened)
    calls: list[str] = []
    watches: dict[str, Watch] = {}
    handled = Event()

    def replace(name: str, sock: socket.socket) -> None:
        """The first callback replaces the socket of the second."""
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
        for _ in range(10):  # more than a turn for what is left of the batch
            await checkpoint()

    assert calls == []


@pytest.mark.fault(row=28, injected="a descriptor number is reused between two turns that share a batch")
@needs_epoll
async def test_an_undispatched_event_does_not_reach_the_next_socket_with_its_number(
    epoll: Poller, opened: ExitStack
) -> None:
    """The first of two callbacks uses the whole slice. Before the next turn, the number of the second is reused."""
    ours = {name: nonblocking_pair("unix", opened) for name in ("first", "second")}
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
async def test_edge_triggered_events_left_by_a_full_slice_are_delivered(epoll: Poller, opened: ExitStack) -> None:
    peer, slow = nonblocking_pair("unix", opened)
    pairs = [nonblocking_pair("tcp", opened) for _ in range(3)]
    registrations = [epoll.register(sock) for _, sock in pairs]

    def take_long() -> None:
        watch.close()
        keep_busy(0.003)

    watch = epoll.watch(slow, take_long)
    await wait_all_tasks_blocked()  # the sockets have been reported writable
    for registration in registrations:
        registration.may_read = False
    for sock in (peer, *(each for each, _ in pairs)):
        sock.send(b"x")
    with fail_after(5):
        for registration in registrations:
            await registration.readable()


@needs_epoll
def test_edge_triggered_events_left_by_an_interrupt_are_dispatched_in_later_turns(opened: ExitStack) -> None:
    """Four events in one batch. Ctrl-C during the first callback ends the turn."""
    poller = Poller()
    opened.callback(poller.epoll.close)
    dispatched: list[int] = []

    class Interrupted:
        batch: int

        def __init__(self, sock: socket.socket) -> None:
            self.number = sock.fileno()
            poller.report(self.number, READ_EDGE, self)

        def dispatch(self, mask: int) -> None:
            dispatched.append(self.number)
            if len(dispatched) == 1:
                raise KeyboardInterrupt

        def poller_stopped(self) -> None: ...

    pairs = [nonblocking_pair("unix", opened) for _ in range(4)]
    for peer, ours in pairs:
        peer.send(b"x")
        Interrupted(ours)
    with pytest.raises(KeyboardInterrupt):
        poller.turn()
    while poller.turn():  # a slow machine needs several turns
        pass

    assert sorted(dispatched) == sorted(ours.fileno() for _, ours in pairs)


@needs_epoll
async def test_a_turn_dispatches_at_most_one_batch_of_events(epoll: Poller, opened: ExitStack) -> None:
    calls: list[int] = []
    watches: list[Watch] = []
    for number in range(200):

        def take(number: int = number) -> None:
            calls.append(number)
            watches[number].close()

        peer, ours = nonblocking_pair("unix", opened)
        watches.append(epoll.watch(ours, take))
        peer.send(b"x")

    epoll.turn()
    assert 0 < len(calls) <= 128
    with fail_after(5):
        while len(calls) < 200:
            await checkpoint()


@needs_epoll
@pytest.mark.parametrize("timerfd", [True, False])
async def test_deferred_work_is_done_after_all_events_of_a_batch(
    timerfd: bool, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    if not timerfd:
        monkeypatch.setattr(exclusive, "open_timerfd", lambda: None)

    class Deferring:
        batch: int

        def __init__(self, poller: ExclusivePoller, sock: socket.socket) -> None:
            self.poller = poller
            self.sock = sock
            poller.report(sock.fileno(), READ, self)

        def dispatch(self, mask: int) -> None:
            calls.append("event")
            self.sock.recv(1)
            self.poller.deferred.append(self)

        def resume(self) -> None:
            calls.append("deferred")

        def poller_stopped(self) -> None:
            self.poller.stop_reporting(self.sock.fileno(), self)

    async with open_poller(ExclusivePoller) as poller:
        assert isinstance(poller, ExclusivePoller)
        for _ in range(3):
            peer, ours = nonblocking_pair("unix", opened)
            peer.send(b"x")
            Deferring(poller, ours)
        poller.turn()

    assert calls == ["event"] * 3 + ["deferred"] * 3


@needs_epoll
async def test_a_callback_is_called_while_its_socket_is_readable(epoll: Poller, opened: ExitStack) -> None:
    peer, ours = nonblocking_pair("tcp", opened)
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
async def test_pending_events_are_reported_again_to_a_new_receiver(epoll: Poller, opened: ExitStack) -> None:
    peer, ours = nonblocking_pair("tcp", opened)
    old = epoll.register(ours)
    peer.send(b"x")
    await wait_all_tasks_blocked()  # the edge has been reported
    called = Event()

    def once() -> None:
        watch.close()
        called.set()

    watch = epoll.watch(ours, once)
    old.close()  # affects the new receiver in no way
    with fail_after(5):
        await called.wait()


@needs_epoll
async def test_a_closed_watch_is_not_called_and_a_new_one_is(epoll: Poller, opened: ExitStack) -> None:
    """With a mask of zero instead, the kernel would report the hang-up for ever."""
    peer, ours = nonblocking_pair("tcp", opened)
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
async def test_long_callbacks_in_one_batch_let_tasks_run(
    epoll: Poller, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six callbacks in one batch, each longer than a slice: a task runs before the last callback."""
    order: list[str] = []
    peers = [nonblocking_pair("unix", opened) for _ in range(6)]
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
    _, ours = nonblocking_pair("unix", opened)
    async with create_task_group() as tasks:
        with fail_after(5):
            async with open_poller() as poller:
                registration = poller.register(ours)
                registration.may_read = False
                tasks.start_soon(_closed, registration, "readable")
                await wait_all_tasks_blocked()


@needs_epoll
async def test_a_poller_still_runs_while_its_block_is_cancelled(opened: ExitStack) -> None:
    peer, ours = nonblocking_pair("unix", opened)
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
async def test_a_callback_that_is_called_in_every_batch_lets_tasks_run(epoll: Poller, opened: ExitStack) -> None:
    """Each batch is shorter than a slice, and the socket is always readable."""
    peer, ours = nonblocking_pair("unix", opened)
    watch = epoll.watch(ours, lambda: None)  # reads nothing, so the socket stays readable
    peer.send(b"x")
    with fail_after(SOON):
        for _ in range(40):
            await checkpoint()
    watch.close()


@needs_epoll
@pytest.mark.parametrize("way", ["readable", "writable"])
async def test_a_wait_after_the_poller_has_stopped_is_refused(way: str, opened: ExitStack) -> None:
    _, ours = nonblocking_pair("unix", opened)
    async with open_poller() as poller:
        registration = poller.register(ours)

    registration.may_read = registration.may_write = False
    with fail_after(5):
        await _closed(registration, way)


async def test_a_wait_during_the_close_of_a_registration_is_refused(opened: ExitStack) -> None:
    """`aclose` waits for the first task to end. A second wait then must not begin: the socket closes under it."""
    _, ours = nonblocking_pair("unix", opened)
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
