"""A server in a process of its own, pinned to one core, and what the kernel knows of what it costs."""

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

#: How long a server may take to start, to come to rest, or for anything else that should happen at once.
TIMEOUT = 20.0
#: In a command, where a server wants to be told its port.
PORT = "{port}"


class ServerFailed(Exception):
    """It did not start, died, or did not do what it was asked for."""


class Running:
    """A server that accepts on 127.0.0.1. All figures are of its process and of the children it has."""

    def __init__(self, process: subprocess.Popen[str], address: str, *, forks: bool) -> None:
        self.pid = process.pid
        self.address = address
        self.port = int(address.rpartition(":")[2])
        self._process = process
        #: Whether it has a child for each connection; looking for them takes a while.
        self._forks = forks

    def processor_ns(self) -> int:
        """Nanoseconds of user and system time so far.

        From schedstat, not from stat: the same sum, which stat rounds to ticks of 10 ms. It is exact for a thread
        that sleeps, and a tick of the scheduler (1 to 4 ms) old for one that runs.
        """
        return sum(int(text.split()[0]) for text in self._read_threads("schedstat"))

    def wakeups(self) -> int:
        """How often its threads have gone to sleep so far, which is how often they were woken."""
        lines = [line for text in self._read_threads("status") for line in text.splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))

    def private_bytes(self) -> int:
        """Memory that would be free if it ended: the pages that nobody else maps."""
        rows = [line.split() for pid in self._pids() for line in _read(f"/proc/{pid}/smaps_rollup").splitlines()]
        return sum(int(row[1]) * 1024 for row in rows if row[0] in ("Private_Clean:", "Private_Dirty:"))

    def is_at_rest(self) -> bool:
        """Whether it has accepted everybody and all its threads sleep: it has done all there is to do."""
        if self._process.poll() is not None:
            raise ServerFailed("it died")

        states = [text.rpartition(")")[2].split()[0] for text in self._read_threads("stat")]
        return self.backlog() == 0 and set(states) == {"S"}

    def backlog(self) -> int:
        """Connections that the kernel has made and the server has not accepted."""
        # Those that listen come first: one page is enough, however many connections there are.
        with open("/proc/net/tcp", "rb", buffering=0) as table:
            rows = [line.split() for line in table.read(4096).decode().splitlines()[1:]]
        if not (ours := [row for row in rows if row[1].endswith(f":{self.port:04X}") and row[3] == "0A"]):
            raise ServerFailed("it listens no more")

        return int(ours[0][4].partition(":")[2], 16)

    def suspend(self) -> None:
        """Let it run no more until `resume`."""
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
    # A child may end between its being listed and its being asked.
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(path).read_text()
    return ""


@contextmanager
def running(command: Sequence[str], *, core: int) -> Iterator[Running]:
    """Start a server on `core`, and kill it in the end. Raises `ServerFailed` if it does not accept."""
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
                with suppress(ProcessLookupError):  # it died, and has no children that live
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
    """Ask again and again; raise `ServerFailed` if it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ServerFailed(f"it was not done within {seconds:.0f} s")
        time.sleep(every)
