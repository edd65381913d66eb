"""After SIGSTOP or Ctrl-Z, ``anyecho send`` reads the data that arrived meanwhile before it applies a timeout."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from time import sleep

import pytest

from tests.support.peers import receive_all
from tests.support.process import Processes, wait_until


@pytest.mark.parametrize("limit", ["--timeout", "--deadline"])
def test_an_echo_that_arrives_while_the_process_is_stopped_is_in_time(
    limit: str, processes: Processes, backend: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        process = processes.start("send", address, "hello", limit, "1s", "--backend", backend)
        with listener.accept()[0] as sock:
            sent = receive_all(sock)
            process.signal(signal.SIGSTOP)
            wait_until(lambda: state(process.pid) == "T")
            sock.sendall(sent)
        sleep(1.2)  # the limit passes
        process.signal(signal.SIGCONT)
        assert (process.wait(), process.read_bytes(5), process.errors()) == (0, b"hello", "")


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
