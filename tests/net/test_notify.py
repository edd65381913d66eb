"""What a service manager hears of us; and that one which does not listen costs nothing but a line."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from anyio import create_task_group, fail_after

from anyecho.net.notify import Notifier, open_notifier
from tests.peers import SOON, until


@contextmanager
def manager(place: str) -> Iterator[socket.socket]:
    """A non-blocking receiver at `place`, as NOTIFY_SOCKET would name it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + place[1:] if place.startswith("@") else place)
        sock.setblocking(False)
        yield sock


def heard(sock: socket.socket) -> list[str]:
    """All that has come."""
    messages: list[str] = []
    try:
        while True:
            messages.append(sock.recv(65536).decode())
    except BlockingIOError:
        return messages


@pytest.fixture(params=["path", "abstract"])
def place(request: pytest.FixtureRequest, short_path: Path) -> str:
    return f"{short_path}/notify" if request.param == "path" else f"@anyecho-{short_path.name}"


def test_each_state_is_a_datagram(place: str) -> None:
    with manager(place) as sock, open_notifier({"NOTIFY_SOCKET": place}) as notifier:
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notifier.ready("listening on tcp://127.0.0.1:7")
        notifier.reloading()
        notifier.stopping("letting connections finish")
        ready, reloading, stopping = heard(sock)

    assert ready == "READY=1\nSTATUS=listening on tcp://127.0.0.1:7"
    assert stopping == "STOPPING=1\nSTATUS=letting connections finish"
    head, _, since = reloading.partition("\nMONOTONIC_USEC=")
    assert head == "RELOADING=1"
    assert before <= int(since) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_who_is_stopping_is_not_ready_again(place: str) -> None:
    with manager(place) as sock, open_notifier({"NOTIFY_SOCKET": place}) as notifier:
        notifier.stopping("letting connections finish")
        notifier.reloading()
        notifier.ready("listening")
        assert heard(sock) == ["STOPPING=1\nSTATUS=letting connections finish"]


def test_a_status_is_never_too_long_for_its_reader(place: str) -> None:
    with manager(place) as sock, open_notifier({"NOTIFY_SOCKET": place}) as notifier:
        notifier.ready("x" * 1_000_000)
        [message] = heard(sock)

    assert message == "READY=1\nSTATUS=" + "x" * 997 + "..."


def test_no_child_speaks_for_us(place: str) -> None:
    environ = {"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    with open_notifier(environ):
        assert environ == {"HOME": "/"}


@pytest.mark.parametrize("pid", [{}, {"WATCHDOG_PID": str(os.getpid())}], ids=["anybody", "ours"])
async def test_signs_of_life_come_twice_in_the_time_allowed(pid: dict[str, str], place: str) -> None:
    environ = pid | {"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "200000"}
    messages: list[str] = []

    def three_came() -> bool:
        messages.extend(heard(sock))
        return len(messages) >= 3

    with manager(place) as sock, open_notifier(environ) as notifier:
        began = time.monotonic()
        async with create_task_group() as tasks:
            tasks.start_soon(notifier.ping_watchdog)
            await until(three_came)
            tasks.cancel_scope.cancel()

    assert set(messages) == {"WATCHDOG=1"}
    assert time.monotonic() - began > 0.19


@pytest.mark.parametrize(
    "environ", [{}, {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "", "WATCHDOG_PID": ""}]
)
async def test_who_wants_no_signs_of_life_gets_none(environ: dict[str, str], place: str) -> None:
    with manager(place) as sock, open_notifier(environ | {"NOTIFY_SOCKET": place}) as notifier:
        with fail_after(SOON):
            await notifier.ping_watchdog()
        assert heard(sock) == []


@pytest.mark.parametrize("environ", [{}, {"WATCHDOG_USEC": "1"}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
async def test_without_a_manager_nobody_is_told(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open_notifier(dict(environ)) as notifier:
        assert len(os.listdir("/proc/self/fd")) == before
        notifier.ready("")
        notifier.stopping("")

    assert caplog.records == []


def tell_all(notifier: Notifier, times: int = 3) -> None:
    for _ in range(times):
        notifier.ready("")
        notifier.reloading()
        notifier.stopping("")


@pytest.mark.parametrize("name", ["nowhere/notify", "file", "x" * 200])
def test_a_manager_that_cannot_be_reached_is_one_warning(
    name: str, short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (short_path / "file").touch()
    place = f"{short_path}/{name}"
    with open_notifier({"NOTIFY_SOCKET": place}) as notifier:
        tell_all(notifier)

    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"cannot notify {place!r}: ")


def test_one_that_does_not_read_holds_up_nobody(place: str, caplog: pytest.LogCaptureFixture) -> None:
    with manager(place) as sock, open_notifier({"NOTIFY_SOCKET": place}) as notifier:
        tell_all(notifier, 1000)
        assert len(heard(sock)) < 3000

    [record] = caplog.records
    assert record.getMessage().endswith(": Resource temporarily unavailable")


def test_without_a_descriptor_for_it_nobody_is_told(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    with open_notifier({"NOTIFY_SOCKET": place}) as notifier:
        tell_all(notifier)

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
def test_what_makes_no_sense_is_one_warning(
    environ: dict[str, str], warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_notifier(environ):
        pass

    [record] = caplog.records
    assert record.getMessage().startswith(warning)
