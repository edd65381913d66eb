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
    wait_readable,
)
from anyio.lowlevel import checkpoint

from anyecho.net import poller as poller_module
from anyecho.net import registration as registration_module
from anyecho.net.fallback import Fallback, Registration
from anyecho.net.poller import Poller, open_poller
from anyecho.net.registration import PolledRegistration, Watch
from tests.net.pairs import KINDS, raw_pair

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


class Parking:
    """How often a Poller has parked, and whether it does now."""

    def __init__(self) -> None:
        self.count = 0
        self.now = False

    async def park(self, descriptor: int) -> None:
        self.count += 1
        self.now = True
        await wait_readable(descriptor)
        self.now = False


@pytest.fixture
def parking(monkeypatch: pytest.MonkeyPatch) -> Parking:
    parking = Parking()
    monkeypatch.setattr(poller_module, "wait_readable", parking.park)
    return parking


def quiet_pair(kind: str, opened: ExitStack) -> tuple[socket.socket, socket.socket]:
    peer, ours = (opened.enter_context(sock) for sock in raw_pair(kind))
    ours.setblocking(False)
    return peer, ours


def prompt_pair(epoll: Poller, opened: ExitStack) -> tuple[socket.socket, PolledRegistration]:
    """A peer that answered at once the last time, and has said nothing since."""
    peer, ours = quiet_pair("tcp", opened)
    registration = epoll.register(ours)
    registration.may_read, registration._prompt = False, True
    return peer, registration


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
        watches[other_name].pause()
        other.close()
        sockets = [opened.enter_context(each) for each in socket.socketpair()]
        new = next(each for each in sockets if each.fileno() == number)
        watches["new"] = epoll.watch(new, lambda: calls.append("new"))
        watches[name].pause()
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
async def test_a_look_in_the_middle_of_a_batch_changes_nothing_for_it(
    epoll: Poller, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Poller yields after the first of two events; then a task looks, and the second's number is reused."""
    ours = {name: quiet_pair("unix", opened) for name in ("first", "second")}
    watches: dict[str, Watch] = {}
    calls: list[str] = []

    def take_long(name: str) -> None:
        calls.append(name)
        watches[name].pause()
        keep_busy(0.003)

    async def interrupted() -> None:
        if len(calls) == 1 and "new" not in watches:
            epoll.look()
            (other,) = set(ours) - set(calls)
            number = ours[other][1].fileno()
            watches[other].pause()
            ours[other][1].close()
            sockets = [opened.enter_context(each) for each in socket.socketpair()]
            new = next(each for each in sockets if each.fileno() == number)
            watches["new"] = epoll.watch(new, lambda: calls.append("new"))
        await checkpoint()

    monkeypatch.setattr(epoll, "_yield", interrupted)
    for name, (_, sock) in ours.items():
        watches[name] = epoll.watch(sock, partial(take_long, name))
    for peer, _ in ours.values():
        peer.send(b"x")
    with fail_after(5):
        while "new" not in watches:
            await checkpoint()
        await wait_all_tasks_blocked()

    assert len(calls) == 1


@needs_epoll
async def test_whose_peer_is_prompt_looks_and_does_not_sleep(
    epoll: Poller, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, ours = quiet_pair("tcp", opened)
    registration = epoll.register(ours)
    looked = 0

    async def counted() -> None:
        nonlocal looked
        looked += 1
        await checkpoint()

    monkeypatch.setattr(registration_module, "checkpoint", counted)
    with fail_after(5):
        for _ in range(40):
            registration.may_read = False
            peer.send(b"x")
            await registration.readable()
            assert ours.recv(2) == b"x"
    registration.close()

    assert looked


@needs_epoll
async def test_a_peer_that_lets_the_poller_sleep_is_not_prompt(
    parking: Parking, epoll: Poller, opened: ExitStack
) -> None:
    peer, ours = quiet_pair("tcp", opened)
    registration = epoll.register(ours)
    with fail_after(5):
        for _ in range(10):
            registration.may_read = False
            async with create_task_group() as tasks:
                tasks.start_soon(registration.readable)
                while not parking.now:
                    await checkpoint()
                peer.send(b"x")
            assert not registration._prompt
            assert ours.recv(2) == b"x"
    registration.close()


@needs_epoll
async def test_a_look_at_callbacks_that_take_long_ends_with_the_slice(epoll: Poller, opened: ExitStack) -> None:
    calls = 0
    watches: list[Watch] = []
    for number in range(30):

        def busy(number: int = number) -> None:
            nonlocal calls
            calls += 1
            watches[number].pause()
            keep_busy(0.001)

        peer, ours = quiet_pair("unix", opened)
        watches.append(epoll.watch(ours, busy))
        peer.send(b"x")

    epoll.look()
    assert 0 < calls < 30
    with fail_after(5):
        while calls < 30:
            await checkpoint()


@needs_epoll
async def test_a_look_after_the_poller_has_stopped_is_harmless(epoll: Poller) -> None:
    async with open_poller() as stopped:
        assert isinstance(stopped, Poller)

    stopped.look()


@needs_epoll
async def test_a_prompt_peer_that_falls_silent_is_slept_for(epoll: Poller, opened: ExitStack) -> None:
    peer, registration = prompt_pair(epoll, opened)
    with fail_after(5):
        async with create_task_group() as tasks:
            tasks.start_soon(registration.readable)
            await wait_all_tasks_blocked()  # no loop that lets others run, and never ends
            peer.send(b"x")
    registration.close()


@needs_epoll
async def test_a_look_that_is_cancelled_leaves_the_place_free(epoll: Poller, opened: ExitStack) -> None:
    peer, registration = prompt_pair(epoll, opened)
    with CancelScope() as scope:
        scope.cancel()
        await registration.readable()
    assert scope.cancelled_caught

    peer.send(b"x")
    with fail_after(5):
        await registration.readable()
    registration.close()


@needs_epoll
async def test_a_look_at_what_is_being_closed_is_refused(epoll: Poller, opened: ExitStack) -> None:
    _, registration = prompt_pair(epoll, opened)

    async def close() -> None:
        registration.close()

    async with create_task_group() as tasks:
        tasks.start_soon(close)
        with fail_after(5), pytest.raises(ClosedResourceError):
            await registration.readable()


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
    watch.pause()


@needs_epoll
async def test_what_is_pending_is_reported_again_after_a_handover(epoll: Poller, opened: ExitStack) -> None:
    peer, ours = quiet_pair("tcp", opened)
    epoll.register(ours)
    peer.send(b"x")
    await wait_all_tasks_blocked()  # the edge has been and gone
    called = Event()

    def once() -> None:
        watch.pause()
        called.set()

    watch = epoll.watch(ours, once)
    with fail_after(5):
        await called.wait()


@needs_epoll
async def test_a_paused_watch_hears_nothing_until_it_resumes(epoll: Poller, opened: ExitStack) -> None:
    """A mask of zero would not do: a hang-up is reported on that, and again, and again."""
    peer, ours = quiet_pair("tcp", opened)
    calls = 0
    called = Event()

    def count() -> None:
        nonlocal calls
        calls += 1
        called.set()
        watch.pause()

    watch = epoll.watch(ours, count)
    watch.pause()
    peer.send(b"x")
    peer.close()
    for _ in range(50):
        await checkpoint()
    assert calls == 0
    watch.resume()
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
            watches[number].pause()
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
async def test_one_that_speaks_alone_is_waited_for_without_parking(
    parking: Parking, epoll: Poller, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller_module, "_PATIENCE", 5.0)
    peer, ours = quiet_pair("tcp", opened)
    heard = 0

    def hear() -> None:
        nonlocal heard
        heard += len(ours.recv(1))

    watch = epoll.watch(ours, hear)
    for spoken in range(50):
        peer.send(b"x")
        while heard <= spoken:
            await checkpoint()
    watch.pause()

    assert parking.count <= 3


@needs_epoll
async def test_silence_after_one_that_spoke_alone_parks_the_poller(
    parking: Parking, epoll: Poller, opened: ExitStack
) -> None:
    peer, ours = quiet_pair("tcp", opened)
    heard = bytearray()
    watch = epoll.watch(ours, lambda: heard.extend(ours.recv(1)))
    with fail_after(5):
        for spoken in range(3):
            peer.send(b"x")
            while len(heard) <= spoken:
                await checkpoint()
            while not parking.now:
                await checkpoint()

    watch.pause()


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
    turns = 0
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        await checkpoint()
        turns += 1

    assert turns > 40
    watch.pause()


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
