"""Notifying a service manager: one datagram per state; an unreachable manager is one warning."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import anyio
import pytest
from anyio import create_task_group, fail_after
from anyio.lowlevel import checkpoint

from anyecho.systemd.notify import Notifier, StateReceiver, open_notifier
from tests.support.machine import needs_linux
from tests.support.peers import SOON, until
from tests.support.tasks import wait_all_tasks_blocked


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    """Yield a non-blocking receiver at `address`, written as in NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        sock.setblocking(False)
        yield sock


def received(sock: socket.socket) -> list[str]:
    """Return all messages received so far."""
    messages: list[str] = []
    try:
        while True:
            messages.append(sock.recv(65536).decode())
    except BlockingIOError:
        return messages


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, short_path: Path) -> str:
    return f"{short_path}/notify" if request.param == "path" else f"@anyecho-{short_path.name}"


def test_each_state_is_a_datagram(address: str) -> None:
    with manager(address) as sock, open_notifier({"NOTIFY_SOCKET": address}) as notifier:
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notifier.ready("listening on tcp://127.0.0.1:7")
        notifier.reloading()
        notifier.stopping("letting connections finish")
        ready, reloading, stopping = received(sock)

    assert ready == "READY=1\nSTATUS=listening on tcp://127.0.0.1:7"
    assert stopping == "STOPPING=1\nSTATUS=letting connections finish"
    head, _, since = reloading.partition("\nMONOTONIC_USEC=")
    assert head == "RELOADING=1"
    assert before <= int(since) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_ready_is_not_sent_after_stopping(address: str) -> None:
    with manager(address) as sock, open_notifier({"NOTIFY_SOCKET": address}) as notifier:
        notifier.stopping("letting connections finish")
        notifier.reloading()
        notifier.ready("listening")
        assert received(sock) == ["STOPPING=1\nSTATUS=letting connections finish"]


def test_a_long_status_is_truncated(address: str) -> None:
    with manager(address) as sock, open_notifier({"NOTIFY_SOCKET": address}) as notifier:
        notifier.ready("x" * 1_000_000)
        [message] = received(sock)

    assert message == "READY=1\nSTATUS=" + "x" * 997 + "..."


def test_child_processes_do_not_inherit_the_notify_socket(address: str) -> None:
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    with open_notifier(environ):
        assert environ == {"HOME": "/"}


@pytest.mark.parametrize("pid", [{}, {"WATCHDOG_PID": str(os.getpid())}], ids=["any process", "this process"])
async def test_watchdog_pings_are_sent_at_half_the_timeout(
    pid: dict[str, str], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = pid | {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}
    messages: list[str] = []
    periods: list[float] = []

    async def sleep(seconds: float) -> None:
        periods.append(seconds)
        await checkpoint()

    monkeypatch.setattr("anyecho.systemd.notify.sleep", sleep)

    def three_received() -> bool:
        messages.extend(received(sock))
        return len(messages) >= 3

    with manager(address) as sock, open_notifier(environ) as notifier:
        async with create_task_group() as tasks:
            tasks.start_soon(notifier.ping_watchdog)
            await until(three_received)
            tasks.cancel_scope.cancel()

    assert set(messages) == {"WATCHDOG=1"}
    assert set(periods) == {0.1}


@pytest.mark.parametrize(
    "environ", [{}, {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "", "WATCHDOG_PID": ""}]
)
async def test_no_watchdog_pings_are_sent_without_a_watchdog(environ: dict[str, str], address: str) -> None:
    with manager(address) as sock, open_notifier(environ | {"NOTIFY_SOCKET": address}) as notifier:
        with fail_after(SOON):
            await notifier.ping_watchdog()
        assert received(sock) == []


@pytest.mark.parametrize("environ", [{}, {"WATCHDOG_USEC": "1"}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
async def test_nothing_is_sent_without_a_service_manager(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open_notifier(dict(environ)) as notifier:
        assert len(os.listdir("/proc/self/fd")) == before
        notifier.ready("")
        notifier.stopping("")

    assert caplog.records == []


def send_all(notifier: Notifier, times: int = 3) -> None:
    for _ in range(times):
        notifier.ready("")
        notifier.reloading()
        notifier.stopping("")


@pytest.mark.parametrize("name", ["nowhere/notify", "file", "x" * 200])
def test_a_manager_that_cannot_be_reached_is_one_warning(
    name: str, short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (short_path / "file").touch()
    address = f"{short_path}/{name}"
    with open_notifier({"NOTIFY_SOCKET": address}) as notifier:
        send_all(notifier)

    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"cannot notify {address!r}: ")


def test_a_manager_that_does_not_read_blocks_nothing(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with manager(address) as sock, open_notifier({"NOTIFY_SOCKET": address}) as notifier:
        send_all(notifier, 1000)
        assert len(received(sock)) < 3000

    [record] = caplog.records
    assert record.getMessage().endswith(": Resource temporarily unavailable")


def test_a_notifier_without_a_descriptor_is_one_warning(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    with open_notifier({"NOTIFY_SOCKET": address}) as notifier:
        send_all(notifier)

    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == ["Too many open files"]


@pytest.mark.parametrize(
    ("environ", "warning"),
    [
        ({"NOTIFY_SOCKET": "run/notify"}, "NOTIFY_SOCKET is 'run/notify', neither a path nor @name"),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"}, "WATCHDOG_USEC is '0', not a number above 0"),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1s"}, "WATCHDOG_USEC is '1s', not a number above 0"),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": str(2**64 - 1)}, "WATCHDOG_USEC is '18446744073709551615', not"),
    ],
)
def test_a_malformed_variable_is_one_warning(
    environ: dict[str, str], warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_notifier(environ):
        pass

    [record] = caplog.records
    assert record.getMessage().startswith(warning)


@needs_linux
@pytest.mark.parametrize("pid", [None, os.getppid()], ids=["no child yet", "another process"])
async def test_a_state_of_a_process_that_is_not_the_child_is_ignored(pid: int | None) -> None:
    states: list[dict[str, str]] = []

    async def receive() -> None:
        states.append(await receiver.receive())

    with closing(StateReceiver()) as receiver, open_notifier({"NOTIFY_SOCKET": receiver.address}) as notifier:
        receiver.pid = pid
        notifier.ready("ignored")
        async with create_task_group() as tasks:
            tasks.start_soon(receive)
            await wait_all_tasks_blocked()
            receiver.pid = os.getpid()
            notifier.ready("received")

    assert states == [{"READY": "1", "STATUS": "received"}]


def test_a_supervisor_on_another_system_receives_at_a_path_that_only_its_user_can_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without abstract names and credentials."""
    monkeypatch.setattr(sys, "platform", "freebsd14")
    receiver = StateReceiver()
    path = Path(receiver.address)
    assert path.is_socket()
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with open_notifier({"NOTIFY_SOCKET": receiver.address}) as notifier:
        notifier.ready("listening")
    assert anyio.run(receiver.receive) == {"READY": "1", "STATUS": "listening"}
    receiver.close()
    assert not path.parent.exists()
