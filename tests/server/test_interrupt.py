"""Ctrl-C in a program that runs a server and handles no signals."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.machine import needs_linux
from tests.support.peers import SOON
from tests.support.process import wait_until

PROGRAM = textwrap.dedent(
    """
    import signal, sys

    from anyio import sleep_forever

    import anyecho
    from anyecho.server.connection import Connection

    linger = Connection._linger


    async def announced_linger(self, *args, **kwargs):
        print("lingering", flush=True)
        await linger(self, *args, **kwargs)


    async def main():
        options = anyecho.ServeOptions(linger=1)
        async with anyecho.open_server("tcp://127.0.0.1:0", options=options) as server:
            print(server.port, flush=True)
            await sleep_forever()


    Connection._linger = announced_linger
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        anyecho.run(main, backend=sys.argv[1])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    """
)


def is_asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("S")


@needs_linux
@pytest.mark.parametrize("engine", ["events"], indirect=True)
def test_a_second_interrupt_while_a_connection_lingers_is_one_keyboard_interrupt(backend: str) -> None:
    command = [sys.executable, "-c", PROGRAM, backend]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        with socket.create_connection(("127.0.0.1", int(program.stdout.readline()))) as sock:
            sock.settimeout(0.2)
            with suppress(TimeoutError):
                while True:  # echo that is not read stays pending, so the server lingers
                    sock.send(bytes(65536))
            program.send_signal(signal.SIGINT)
            assert program.stdout.readline() == "lingering\n"
            # Within a step of a task, anyio may lose its cancel scopes to an interrupt on asyncio.
            wait_until(lambda: is_asleep(program.pid))
            program.send_signal(signal.SIGINT)
            output, errors = program.communicate(timeout=4 * SOON)

    assert output == "interrupted\n"
    assert "Group" not in errors  # asyncio may log that its main task was interrupted too
