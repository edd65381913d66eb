"""Error lines and addresses on blocking, non-blocking and unread standard streams."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

import pytest

from anyecho.cli import streams
from anyecho.cli.streams import print_error
from tests.support.peers import SOON
from tests.support.pipes import redirected, unread_pipe
from tests.support.process import TIMEOUT, Processes, accepts, round_trip, wait_until

BLOCKING = pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])


@BLOCKING
def test_an_error_line_waits_for_a_reader(monkeypatch: pytest.MonkeyPatch, blocking: bool) -> None:
    monkeypatch.setattr(streams, "_ERROR_TIMEOUT", TIMEOUT)
    text = b""

    def read() -> None:
        nonlocal text
        sleep(0.1)  # until the line is waiting
        while b"anyecho" not in text:
            text = os.read(read_end, 1 << 20)

    with unread_pipe(blocking=blocking) as (read_end, write_end), redirected(2, write_end):
        reading = Thread(target=read)
        reading.start()
        print_error("a mistake")
        reading.join(TIMEOUT)

    assert text.lstrip() == b"anyecho: a mistake\n"


@BLOCKING
def test_an_unread_error_line_is_given_up(monkeypatch: pytest.MonkeyPatch, blocking: bool) -> None:
    monkeypatch.setattr(streams, "_ERROR_TIMEOUT", 0.2)
    with unread_pipe(blocking=blocking) as (_, write_end), redirected(2, write_end):
        began = monotonic()
        print_error("a mistake")

    assert 0.2 <= monotonic() - began < 0.2 + SOON


@BLOCKING
def test_addresses_wait_for_a_reader_of_standard_output(
    processes: Processes, backend: str, blocking: bool, short_path: Path
) -> None:
    address = f"unix:{short_path}/echo"
    text = bytearray()
    with unread_pipe(blocking=blocking) as (read_end, write_end):
        os.set_blocking(read_end, False)
        process = processes.start("serve", "-b", address, "--backend", backend, stdout=write_end)
        wait_until(lambda: accepts(address))
        assert round_trip(address, b"hello") == b"hello"

        def has_arrived() -> bool:
            with suppress(BlockingIOError):
                text.extend(os.read(read_end, 1 << 20))
            return text.endswith(f"{address}\n".encode())

        wait_until(has_arrived)

    process.signal()
    assert process.wait() == 0
    assert process.errors() == ""
