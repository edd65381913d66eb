"""A server process pinned to one core, and its cost as the kernel accounts it."""

from __future__ import annotations

__all__ = ("TIMEOUT", "Running", "ServerFailed", "running", "wait_until")

import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from anyecho.errors import AnyechoError

#: Seconds that a server may take to start, or to come to rest.
TIMEOUT = 20.0
#: Placeholder of the port in a command.
PORT = "{port}"


class ServerFailed(Exception):
    """The server did not start, died, or gave a wrong answer."""


class Running:
    """A server that accepts on 127.0.0.1. All figures include its child processes."""

    def __init__(self, process: subprocess.Popen[str], address: str, *, forks: bool) -> None:
        self.pid = process.pid
        self.address = address
        self.port = int(address.rpartition(":")[2])
        self._process = process
        #: Whether it forks for each connection; to list the children takes time.
        self._forks = forks

    def processor_ns(self) -> int:
        """Return the nanoseconds of user and system time so far.

        From schedstat, because stat rounds the same sum to ticks of 10 ms. It is exact for a sleeping thread, and
        up to a scheduler tick (1 to 4 ms) old for a running one.
        """
        return sum(int(text.split()[0]) for text in self._read_threads("schedstat"))

    def wakeups(self) -> int:
        """Return how often its threads have gone to sleep (voluntary context switches), hence were woken."""
        lines = [line for text in self._read_threads("status") for line in text.splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))

    def private_bytes(self) -> int:
        """Return the private memory (USS) in bytes: the pages that no other process maps."""
        rows = [line.split() for pid in self._pids() for line in _read(f"/proc/{pid}/smaps_rollup").splitlines()]
        return sum(int(row[1]) * 1024 for row in rows if row[0] in ("Private_Clean:", "Private_Dirty:"))

    def is_at_rest(self) -> bool:
        """Return whether its accept backlog is empty and all its threads sleep."""
        if self._process.poll() is not None:
            raise ServerFailed("it died")

        states = [text.rpartition(")")[2].split()[0] for text in self._read_threads("stat")]
        return self.backlog() == 0 and set(states) == {"S"}

    def backlog(self) -> int:
        """Return the number of connections in the accept backlog."""
        with open("/proc/net/tcp", encoding="ascii") as table:
            next(table)
            for local, _, state, queues in (line.split()[1:5] for line in table):
                if state != "0A":
                    break  # listeners come first: the connections, any number, are not read
                if local.endswith(f":{self.port:04X}"):
                    return int(queues.partition(":")[2], 16)

        raise ServerFailed("it listens no more")

    def suspend(self) -> None:
        """Stop the process until `resume`."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _pids(self) -> list[int]:
        if not self._forks:
            return [self.pid]

        stats = [(int(path.name), _read(f"{path}/stat")) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [
            self.pid,
            *(pid for pid, text in stats if text and int(text.rpartition(")")[2].split()[1]) == self.pid),
        ]

    def _read_threads(self, name: str) -> list[str]:
        pids = self._pids()
        paths = [path for pid in pids for path in Path(f"/proc/{pid}/task").iterdir()]
        return [text for path in paths if (text := _read(f"{path}/{name}"))]


def _read(path: str) -> str:
    # A child may end after it has been listed.
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(path).read_text()
    return ""


@contextmanager
def running(command: Sequence[str], *, core: int) -> Iterator[Running]:
    """Run a server on `core` within the block. Raises `ServerFailed` if it does not accept."""
    port = _free_port() if any(PORT in word for word in command) else 0
    words = [word.replace(PORT, str(port)) for word in command]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            preexec_fn=partial(os.sched_setaffinity, 0, {core}),
        )
        assert process.stdout is not None
        with process.stdout:
            try:
                address = _wait_for_port(port) if port else _read_address(process.stdout)
                yield Running(process, address, forks=any(",fork" in word for word in words))
            except (AnyechoError, OSError, ServerFailed) as exc:
                raise ServerFailed(_explain(exc, process, errors)) from exc
            finally:
                with suppress(ProcessLookupError):  # it has died, with all its children
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _explain(exc: Exception, process: subprocess.Popen[str], errors: IO[str]) -> str:
    message = f"{type(exc).__name__}: {exc}".removeprefix("ServerFailed: ")
    if (status := process.poll()) is not None:
        message += f" (it exited with {status})"
    errors.seek(0)
    if said := errors.read().strip():
        message += f"; it said: {said.splitlines()[-1]}"

    return message


def _read_address(output: IO[str]) -> str:
    if not select.select([output], [], [], TIMEOUT)[0]:
        raise ServerFailed(f"it did not say within {TIMEOUT:.0f} s where it listens")
    if not (line := output.readline().strip()):
        raise ServerFailed("it did not start")

    return line


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _wait_for_port(port: int) -> str:
    def accepts() -> bool:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), TIMEOUT):
            return True
        return False

    wait_until(accepts)
    return f"tcp://127.0.0.1:{port}"


def wait_until(condition: Callable[[], bool], *, seconds: float = TIMEOUT, every: float = 0.001) -> None:
    """Poll until `condition` holds; raise `ServerFailed` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ServerFailed(f"it was not done within {seconds:.0f} s")
        time.sleep(every)
