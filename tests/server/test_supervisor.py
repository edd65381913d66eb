"""The supervisor: start, restart, replace and end worker processes, whatever they do."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
from functools import partial
from pathlib import Path
from threading import Event

import pytest
from anyio import create_task_group, move_on_after, sleep
from anyio.lowlevel import checkpoint

from anyecho.errors import StartError, UsageError
from anyecho.server import launch as launch_module
from anyecho.server import supervisor as module
from anyecho.server import worker as worker_module
from anyecho.server.launch import start_worker
from anyecho.server.supervisor import open_supervisor
from anyecho.server.totals import DIED, Totals
from tests.server.workers import READY, SERVE, stand_in
from tests.support.peers import TIMEOUT
from tests.support.peers import until as until_soon
from tests.support.process import descendants, is_alive

ENDS = READY + "time.sleep(0.05); sys.exit(7)"


@pytest.fixture(autouse=True)
def engine() -> None:
    """The workers have no engine, so each test runs once."""


#: Real processes have to start first.
until = partial(until_soon, seconds=TIMEOUT)


#: Processes of earlier tests, such as the resource tracker of multiprocessing.
_EARLIER: set[int] = set()


@pytest.fixture(autouse=True)
def _earlier_processes() -> None:
    _EARLIER.update(descendants(os.getpid()))


def children() -> list[int]:
    return [pid for pid in descendants(os.getpid()) if pid not in _EARLIER and is_alive(pid)]


async def wait_for_other(pid: int) -> int:
    """Wait for a child that serves in place of `pid`."""
    await until(lambda: children() not in ([], [pid]))
    return children()[-1]


@pytest.mark.fault(row=14, injected="a worker ends before it is ready")
async def test_a_worker_that_ends_before_it_is_ready_stops_the_start() -> None:
    with pytest.raises(StartError, match=r"^worker [12] cannot start: it ended with status 7$"):
        async with open_supervisor([stand_in("sys.exit(7)")] * 2):
            pytest.fail("entered")

    assert children() == []


@pytest.mark.fault(row=14, injected="a worker is killed by a signal before it is ready")
async def test_a_worker_that_is_killed_before_it_is_ready_stops_the_start() -> None:
    program = "os.kill(os.getpid(), signal.SIGSEGV)"
    with pytest.raises(StartError, match=r"^worker 2 cannot start: it was ended by signal 11$"):
        async with open_supervisor([stand_in(SERVE), stand_in(program)]):
            pytest.fail("entered")

    assert children() == []


async def test_a_program_that_does_not_exist_stops_the_start() -> None:
    launch = stand_in("", command=["/absent/anyecho"])
    with pytest.raises(StartError, match=r"^worker 1 cannot be started: No such file or directory$"):
        async with open_supervisor([launch]):
            pytest.fail("entered")


@pytest.mark.parametrize(("is_usage", "kind"), [(False, StartError), (True, UsageError)])
async def test_an_error_at_the_start_is_that_of_the_worker(is_usage: bool, kind: type[StartError]) -> None:
    failure = {"text": "ssl_keyfile is missing", "options": ["ssl_keyfile"], "is_usage": is_usage}
    program = f"send(failed=json.loads({json.dumps(failure)!r})); sys.exit(1)"
    with pytest.raises(kind, match=r"^worker 1 cannot start: ssl_keyfile is missing$") as raised:
        async with open_supervisor([stand_in(program)]):
            pytest.fail("entered")

    assert raised.value.options == ("ssl_keyfile",)


async def test_a_worker_that_is_never_ready_is_reported_and_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "_START_LIMIT", 0.5)
    monkeypatch.setattr(module, "_SLOW_START", 0.1)
    with pytest.raises(StartError, match=r"^worker 1 cannot start: it was not ready within 0\.5 s$"):
        async with open_supervisor([stand_in("time.sleep(3600)")]):
            pytest.fail("entered")

    assert children() == []
    [line] = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(r"worker 1 \(process \d+\) is not ready after 100ms", line)


def block_until_the_end(pid: int) -> None:
    """Return once the process has ended, before its event loop can ask for the status."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize("act", ["drain", "kill", "cancel"])
async def test_a_signal_to_a_worker_that_has_just_ended_does_not_change_its_status(
    act: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    signalled = Event()
    waitpid, kill = os.waitpid, os.kill

    def waitpid_after_the_signal(pid: int, options: int) -> tuple[int, int]:
        # Called by a thread of asyncio, which waits for the end of the process.
        signalled.wait(1.0)
        return waitpid(pid, options)

    def kill_and_continue(pid: int, number: int) -> None:
        kill(pid, number)
        signalled.set()

    monkeypatch.setattr(os, "waitpid", waitpid_after_the_signal)
    monkeypatch.setattr(os, "kill", kill_and_continue)
    worker = await start_worker(stand_in("lifeline.recv(65536); sys.exit(7)"), os.environ)
    async with create_task_group() as tasks:
        tasks.start_soon(worker.run)
        await checkpoint()
        block_until_the_end(worker.pid)
        if act == "drain":
            worker.drain()
        elif act == "kill":
            worker.kill("test")
        else:
            tasks.cancel_scope.cancel()

    assert worker.end_reason() == ("test" if act == "kill" else "it ended with status 7")
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.fault(row=14, injected="kill -9 of a worker")
async def test_a_killed_worker_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async with open_supervisor([stand_in(SERVE)] * 2) as supervisor:
        before = children()
        os.kill(before[0], signal.SIGKILL)
        await until(lambda: len({*children()} - {*before}) == 1 and supervisor.restarts == {"signal": 1})
        await until(supervisor.ready)
        assert before[1] in children()
        assert (await supervisor.totals()).restarts == {"signal": 1}

    assert children() == []
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line.endswith(f"(process {before[0]}) has ended: it was ended by signal 9: starting another in 100ms")


@pytest.mark.fault(row=14, injected="SIGSTOP of a worker")
async def test_a_stopped_worker_is_replaced_after_the_heartbeat_timeout() -> None:
    program = SERVE.replace(
        "while lifeline.recv(65536):\n    pass", "while True: tell(b'WATCHDOG=1'); time.sleep(.1)"
    )
    async with open_supervisor([stand_in(program, heartbeat_timeout=2.0)]) as supervisor:
        [before] = children()
        os.kill(before, signal.SIGSTOP)
        await until(lambda: supervisor.restarts == {"stuck": 1})
        await wait_for_other(before)
        await until(supervisor.ready)


@pytest.mark.fault(row=14, injected="a worker that ends again and again")
async def test_the_delay_of_a_restart_doubles(caplog: pytest.LogCaptureFixture) -> None:
    async with open_supervisor([stand_in(ENDS)]) as supervisor:
        await until(lambda: supervisor.restarts["failed"] >= 4)

    delays = [record.getMessage().rpartition(" ")[2] for record in caplog.records]
    assert delays[:3] == ["100ms", "200ms", "400ms"]


async def test_a_healthy_age_resets_the_delay_of_a_restart(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_HEALTHY_AGE", 0.0)
    async with open_supervisor([stand_in(ENDS)]) as supervisor:
        await until(lambda: supervisor.restarts["failed"] >= 3)

    delays = [record.getMessage().rpartition(" ")[2] for record in caplog.records]
    assert delays[:2] == ["100ms", "100ms"]


async def test_a_restart_that_fails_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = tmp_path / "broken"
    program = f"if os.path.exists({str(broken)!r}): sys.exit(5)\n" + SERVE
    async with open_supervisor([stand_in(program)]) as supervisor:
        [before] = children()
        broken.touch()
        os.kill(before, signal.SIGKILL)
        await until(lambda: "worker 1 cannot start: it ended with status 5: starting another in" in caplog.text)
        assert not supervisor.ready()
        broken.unlink()
        await until(supervisor.ready)


@pytest.mark.fault(row=14, injected="no thread can be started for the start of a worker")
async def test_a_start_for_which_there_is_no_thread_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    async with open_supervisor([stand_in(SERVE)]) as supervisor:
        with monkeypatch.context() as patch:
            patch.setattr(launch_module, "open_process", fail)
            os.kill(children()[0], signal.SIGKILL)
            await until(lambda: "worker 1 cannot be started: no thread can be started for it (see" in caplog.text)
        await until(supervisor.ready)


async def test_a_worker_that_drains_by_itself_is_replaced_before_it_ends() -> None:
    program = (
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(9))\n"
        "signal.signal(signal.SIGUSR1, lambda *_: tell(b'STOPPING=1'))\n" + READY + "while True: time.sleep(60)"
    )
    async with open_supervisor([stand_in(program)]) as supervisor:
        [before] = children()
        os.kill(before, signal.SIGUSR1)
        await wait_for_other(before)
        await until(supervisor.ready)
        assert before in children()
        assert supervisor.restarts == {"drained": 1}


async def test_a_roll_replaces_each_worker() -> None:
    async with open_supervisor([stand_in(SERVE)] * 3) as supervisor:
        before = children()
        assert await supervisor.roll()
        await until(lambda: len(children()) == 3)
        assert not {*children()} & {*before}
        assert supervisor.restarts == {}


async def test_a_roll_ends_at_a_worker_that_does_not_become_ready(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken"
    program = f"if os.path.exists({str(broken)!r}): sys.exit(5)\n" + SERVE
    async with open_supervisor([stand_in(program)] * 2) as supervisor:
        before = children()
        broken.touch()
        assert not await supervisor.roll()
        assert children() == before
        assert supervisor.ready()

    assert "the workers are not replaced: worker 1 cannot start: it ended with status 5" in caplog.text


async def test_the_old_worker_serves_until_the_new_one_is_ready(tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.touch()
    program = f"while not os.path.exists({str(go)!r}): time.sleep(.01)\n" + SERVE
    async with open_supervisor([stand_in(program)]) as supervisor, create_task_group() as tasks:
        [before] = children()
        go.unlink()
        tasks.start_soon(supervisor.roll)
        await wait_for_other(before)
        assert before in children()
        assert supervisor.ready()
        go.touch()
        await until(lambda: before not in children())
        assert supervisor.ready()


async def test_a_drain_ends_all_workers() -> None:
    async with open_supervisor([stand_in(SERVE)] * 2) as supervisor:
        supervisor.drain()
        await supervisor.wait_closed()
        assert children() == []
        assert not supervisor.ready()


async def test_a_worker_that_does_not_drain_is_killed_at_its_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "_END_MARGIN", 0.1)
    program = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" + READY + "time.sleep(3600)"
    async with open_supervisor([stand_in(program, drain_limit=0.1)]) as supervisor:
        [pid] = children()
        supervisor.drain()
        await supervisor.wait_closed()

    assert f"process {pid} is killed: it still ran 0.2 s after it began to drain" in caplog.text


async def test_an_abort_kills_a_worker_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ABORT_LIMIT", 0.1)
    program = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" + READY + "time.sleep(3600)"
    async with open_supervisor([stand_in(program)]) as supervisor:
        supervisor.drain()
        await supervisor.abort()
        await supervisor.wait_closed()


@pytest.mark.parametrize("how", ["cancel", "raise"])
async def test_workers_are_killed_when_the_block_is_left(how: str) -> None:
    program = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" + READY + "time.sleep(3600)"
    with move_on_after(3600) as scope:
        try:
            async with open_supervisor([stand_in(program)] * 2):
                assert len(children()) == 2
                if how == "raise":
                    raise KeyError
                scope.cancel()
                await sleep(1)
        except KeyError:
            pass

    assert children() == []


async def test_a_worker_gets_no_variable_of_the_supervisors_options_sockets_and_manager(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    foreign = {
        **{"ANYECHO_WORKERS": "7", "ANYECHO_BIND": ":7000", "LISTEN_PID": "1", "LISTEN_FDS": "1"},
        **{"LISTEN_FDNAMES": "web", "WATCHDOG_PID": "1", "WATCHDOG_USEC": "5", "NOTIFY_SOCKET": "/run/notify"},
    }
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OWN_VARIABLE", "kept")
    program = "send(failed={'text': json.dumps(dict(os.environ)), 'options': []}); sys.exit(1)"
    with pytest.raises(StartError) as raised:
        async with open_supervisor([stand_in(program)]):
            pytest.fail("entered")

    environ = json.loads(str(raised.value).partition(": ")[2])
    assert environ["OWN_VARIABLE"] == "kept"
    assert environ.keys() & foreign.keys() == {"NOTIFY_SOCKET", "WATCHDOG_USEC"}
    assert environ["WATCHDOG_USEC"] == "6000000"  # a heartbeat in 3 s, a tenth of the limit
    assert environ["NOTIFY_SOCKET"] != "/run/notify"


async def test_totals_of_a_worker_that_has_ended_are_kept() -> None:
    totals = Totals(accepted=5, open=2, closed={"eof": 3}).to_json()
    program = f"send(totals=json.loads({json.dumps(totals)!r}))" + SERVE
    async with open_supervisor([stand_in(program)]) as supervisor:
        [before] = children()
        await until(lambda: supervisor.restarts == {} and supervisor.ready())
        os.kill(before, signal.SIGKILL)
        await wait_for_other(before)
        await until(supervisor.ready)
        found = await supervisor.totals()

    assert (found.accepted, found.open, found.closed) == (10, 2, {"eof": 6, DIED: 2})


async def test_lines_that_are_no_message_are_ignored() -> None:
    lines = "\n".join(["not json", "[1, 2]", '{"unknown": 1}', '{"answer": [1]}', '{"answer": 9}', "", ""])
    program = f"lifeline.sendall({lines.encode()!r})" + SERVE
    async with open_supervisor([stand_in(program)]) as supervisor:
        assert supervisor.ready()
        assert await supervisor.totals() == Totals()


async def test_a_worker_that_ends_while_totals_are_read_is_counted_once(tmp_path: Path) -> None:
    totals = Totals(accepted=5, closed={"eof": 5}).to_json()
    first = tmp_path / "first"
    ends_when_asked = (
        f"if not os.path.exists({str(first)!r}):\n"
        f"    open({str(first)!r}, 'w').close()\n"
        f"    send(totals=json.loads({json.dumps(totals)!r}))\n"
        "    tell(b'READY=1')\n"
        "    while b'ask' not in lifeline.recv(65536): pass\n"
        "    os._exit(0)\n" + SERVE
    )
    # The first one answers nothing, so that the supervisor waits.
    async with open_supervisor([stand_in(SERVE), stand_in(ends_when_asked)]) as supervisor:
        found = await supervisor.totals()

    assert (found.accepted, found.closed) == (5, {"eof": 5})


async def test_totals_of_another_version_end_no_supervisor(caplog: pytest.LogCaptureFixture) -> None:
    program = "send(totals={'accepted': 'many'})\n" + SERVE
    async with open_supervisor([stand_in(program)]) as supervisor:
        await until(lambda: "accepted is 'many'" in caplog.text)
        assert supervisor.ready()
        assert (await supervisor.totals()).accepted == 0


async def test_a_state_of_another_process_is_ignored() -> None:
    """Any process of the machine can send to an abstract name."""
    program = "if os.fork() == 0: tell(b'READY=1'); os._exit(0)\nos.wait()\nsys.exit(4)"
    with pytest.raises(StartError, match="status 4"):
        async with open_supervisor([stand_in(program)]):
            pytest.fail("entered")
