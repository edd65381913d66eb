"""What the signals of a supervisor do, whenever they come, and what its workers share."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any
from unittest.mock import Mock

import pytest
from anyio import Event, create_memory_object_stream, create_task_group
from anyio.abc import TaskGroup

from anyecho.cli import supervise
from anyecho.errors import CertificateError
from anyecho.faults import Loss
from anyecho.server.options import ServeOptions
from tests.net.listeners import listening
from tests.support.tasks import wait_all_tasks_blocked

HANGUP, TERM = signal.SIGHUP, signal.SIGTERM


class Supervisor:
    """Remembers what it is told. A roll takes until `rolled` is set."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.rolled = Event()
        self.rolled.set()

    async def roll(self) -> bool:
        self.calls.append("roll")
        await self.rolled.wait()
        return True

    def drain(self) -> None:
        self.calls.append("drain")

    async def abort(self) -> None:
        self.calls.append("abort")

    def kill(self) -> None:
        self.calls.append("kill")


class Scene:
    """The control of a supervisor that listens on one address, and its signals."""

    def __init__(self, listener: Any, put: Any, received: Any, tasks: TaskGroup, certificates: Any) -> None:
        self.listener = listener
        self.supervisor: Any = Supervisor()
        self.notifier = Mock()
        self.tasks = tasks
        self._put = put
        signals: Any = Mock(next=received.receive)
        signals.terminal_is_gone.return_value = False
        self.terminal_is_gone = signals.terminal_is_gone
        self.control = supervise._Control(signals, self.notifier, [[listener]], certificates)
        tasks.start_soon(self.control.obey, tasks)

    async def begin(self) -> None:
        self.control.begin(self.supervisor, self.tasks)
        await wait_all_tasks_blocked()

    async def signal(self, *numbers: int) -> list[str]:
        """Send signals, one after the other; return what the supervisor was told then."""
        self.supervisor.calls.clear()
        for number in numbers:
            self._put.send_nowait(number)
            await wait_all_tasks_blocked()
        return list(self.supervisor.calls)


@asynccontextmanager
async def supervised(certificates: Any = None) -> AsyncIterator[Scene]:
    put, signals = create_memory_object_stream[int](10)
    async with listening("tcp://127.0.0.1:0") as [listener]:
        with put, signals:
            async with create_task_group() as tasks:
                yield Scene(listener, put, signals, tasks, certificates)
                tasks.cancel_scope.cancel()


async def test_a_hangup_during_the_start_replaces_the_workers_after_it() -> None:
    async with supervised() as scene:
        assert await scene.signal(HANGUP, HANGUP) == []
        await scene.begin()
        assert scene.supervisor.calls == ["roll"]
        assert [each[0] for each in scene.notifier.method_calls] == ["reloading", "ready"]


async def test_hangups_during_a_roll_are_one_roll_after_it() -> None:
    async with supervised() as scene:
        await scene.begin()
        scene.supervisor.rolled = Event()
        assert await scene.signal(HANGUP, HANGUP, HANGUP) == ["roll"]
        scene.supervisor.rolled.set()
        await wait_all_tasks_blocked()
        assert scene.supervisor.calls == ["roll", "roll"]


async def test_workers_are_not_replaced_if_their_certificate_could_not_be_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    certificates = Mock()
    certificates.reload.side_effect = CertificateError("cannot use a.pem")
    async with supervised(certificates) as scene:
        await scene.begin()
        assert await scene.signal(HANGUP) == []
        assert [each[0] for each in scene.notifier.method_calls] == ["reloading", "ready"]
        certificates.reload.side_effect = None
        assert await scene.signal(HANGUP) == ["roll"]
    assert "cannot use a.pem; the certificate stays what it was" in caplog.text


async def test_a_termination_during_the_start_ends_it() -> None:
    async with supervised() as scene:
        await scene.signal(HANGUP, TERM)
        scene.supervisor.calls.append("it goes on")

    assert scene.supervisor.calls == []
    assert scene.notifier.stopping.called


@pytest.mark.parametrize("terminal_is_gone", [False, True])
async def test_workers_drain_then_close_their_connections_then_are_killed(terminal_is_gone: bool) -> None:
    async with supervised() as scene:
        await scene.begin()
        scene.terminal_is_gone.return_value = terminal_is_gone
        assert await scene.signal(HANGUP if terminal_is_gone else TERM) == ["drain"]
        assert await scene.signal(HANGUP) == []
        assert await scene.signal(TERM) == ["abort"]
        assert await scene.signal(HANGUP) == []
        assert await scene.signal(TERM) == ["kill"]
        assert scene.listener.sock.fileno() >= 0
        assert scene.notifier.stopping.call_count == 1


async def test_workers_with_sockets_of_their_own_have_one_for_each_address() -> None:
    async with listening("tcp://127.0.0.1:0", "udp://127.0.0.1:0") as first:
        with ExitStack() as opened:
            beside = supervise._slot_beside(first, ServeOptions(), opened)
            assert [each.address for each in beside] == [each.address for each in first]
            assert not {each.sock.fileno() for each in beside} & {each.sock.fileno() for each in first}
        assert [each.sock.fileno() for each in beside] == [-1, -1]
        assert all(each.sock.fileno() >= 0 for each in first)


@pytest.mark.parametrize("seed", [None, 7])
def test_workers_share_the_seed_of_their_faults(seed: int | None, caplog: pytest.LogCaptureFixture) -> None:
    options = supervise._completed(ServeOptions(seed=seed, faults=(Loss(loss_rate=0.1),)), None)
    assert options.faults == (), "a worker reads them from its job"
    assert options.seed is not None
    assert options.seed == (seed or options.seed)
    assert caplog.messages == [f"the workers misbehave on purpose: loss, seed {options.seed}"]


@pytest.mark.parametrize(
    ("words", "arguments", "expected"),
    [
        (["python", "-m", "anyecho"], ["serve", "-b", ":7"], ["-m", "anyecho"]),
        (["python", "-X", "dev", "/usr/bin/anyecho"], ["serve"], ["-X", "dev", "/usr/bin/anyecho"]),
        (["python", "program.py"], ["serve"], ["program.py"]),
        (["anyecho-bundle"], ["serve"], ["-m", "anyecho"]),
    ],
)
def test_a_worker_runs_the_program_of_its_supervisor(
    words: list[str], arguments: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", [*words, *arguments])
    monkeypatch.setattr(sys, "argv", ["anyecho", *arguments])
    assert supervise._own_command() == [sys.executable, *expected]


def test_a_worker_of_a_program_that_has_changed_its_arguments_runs_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "program.py", "--flag"])
    monkeypatch.setattr(sys, "argv", ["anyecho", "serve"])
    assert supervise._own_command() == [sys.executable, "-m", "anyecho"]
