"""Peers of the admin listener that misbehave: the echo goes on, and a health check is answered soon."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from threading import Event, Thread
from typing import TypeAlias

import pytest

from tests.support.peers import dial, exchange, receive_all
from tests.support.process import Process, Processes, descriptors, wait_until

#: Seconds until a health check is answered: one is promised, and the machine may be busy.
PROMPT = 5.0
REQUEST = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(autouse=True)
def engine() -> None:
    """The real default."""


@pytest.fixture
def process(processes: Processes, backend: str) -> Process:
    return processes.serve(
        "--backend", backend, "127.0.0.1:0", "--admin", "127.0.0.1:0", listeners=2, descriptors=1000
    )


def admin_of(process: Process) -> str:
    return process.addresses[1].removeprefix("http://")


def drip(process: Process, opened: ExitStack) -> None:
    """A request of which a byte is sent every 10 ms, on each of 40 connections."""
    ended = Event()
    socks = [opened.enter_context(dial(admin_of(process))) for _ in range(40)]

    def send() -> None:
        with suppress(OSError):  # the server ends them
            while not ended.wait(0.01):
                for sock in socks:
                    sock.send(b"G")

    thread = Thread(target=send)
    thread.start()
    opened.callback(thread.join)
    opened.callback(ended.set)


def stay_idle(process: Process, opened: ExitStack) -> None:
    for _ in range(100):
        opened.enter_context(dial(admin_of(process)))


def send_garbage(process: Process, opened: ExitStack) -> None:
    for _ in range(50):
        opened.enter_context(dial(admin_of(process))).sendall(os.urandom(1000))


def send_large_header(process: Process, opened: ExitStack) -> None:
    """A megabyte of header fields, on each of 5 connections."""
    for _ in range(5):
        sock = opened.enter_context(dial(admin_of(process)))
        with suppress(ConnectionError):  # the server reads no more after its refusal
            sock.sendall(b"GET /readyz HTTP/1.1\r\n" + b"A: b\r\n" * ((1 << 20) // 6))
            assert receive_all(sock).startswith(b"HTTP/1.1 431 ")


def send_large_body(process: Process, opened: ExitStack) -> None:
    sock = opened.enter_context(dial(admin_of(process)))
    with suppress(ConnectionError):
        sock.sendall(b"POST /stats HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n" + bytes(2 << 20))
        assert receive_all(sock).startswith(b"HTTP/1.1 413 ")


def take_descriptors(process: Process, opened: ExitStack) -> None:
    """The echo has all descriptors of the process but its two spare ones."""
    limit = _limit(process, 20)
    for _ in range(60):
        opened.enter_context(dial(process.addresses[0]))
    wait_until(lambda: descriptors(process.pid) >= limit - 1)


def take_descriptors_of_admin(process: Process, opened: ExitStack) -> None:
    """Idle peers of the admin listener have all descriptors of the process."""
    _limit(process, 20)
    stay_idle(process, opened)


def _limit(process: Process, left: int) -> int:
    """Leave the process so many more descriptors; return how many it may have."""
    limit = descriptors(process.pid) + left
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, 1000))
    return limit


Burden: TypeAlias = Callable[[Process, ExitStack], None]
BURDENS: tuple[Burden, ...] = (
    *(drip, stay_idle, send_garbage, send_large_header, send_large_body),
    *(take_descriptors, take_descriptors_of_admin),
)


def probe(process: Process) -> float:
    """Return the seconds until a health check is answered."""
    began = time.monotonic()
    with dial(admin_of(process)) as sock:
        sock.sendall(REQUEST)
        assert receive_all(sock).startswith(b"HTTP/1.1 200 ")

    return time.monotonic() - began


@pytest.mark.parametrize("burden", BURDENS, ids=lambda burden: burden.__name__)
@pytest.mark.by_turns("backend")
def test_the_echo_goes_on_and_a_health_check_is_answered(
    burden: Burden, process: Process, opened: ExitStack
) -> None:
    client = opened.enter_context(dial(process.addresses[0]))
    assert exchange(client, b"before") == b"before"
    burden(process, opened)

    for _ in range(3):
        assert probe(process) < PROMPT
        for _ in range(20):
            assert exchange(client, b"during") == b"during"
    assert process.popen.poll() is None
