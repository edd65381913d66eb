"""A server for one run: ``anyecho serve`` in a process of its own, which ends with the run.

The process keeps the CPU time and the event loop of the server apart from those of the load: nothing of
`anyecho.server` is imported.
"""

from __future__ import annotations

__all__ = ("OwnServer", "Placement", "open_own_server", "placement")

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Literal

from anyio import CancelScope, move_on_after

from anyecho.errors import StartError
from anyecho.measure.generator import parse_cores
from anyecho.measure.series_options import OwnServerOptions
from anyecho.net.fallback import wait_readable

#: Seconds that the server may take to print its address, and to end.
_START_TIMEOUT, _END_TIMEOUT = 20.0, 2.0
_numbers = count()
#: Variables that would change the server, or let it speak to the service manager of this process.
_FOREIGN_VARIABLES = ("ANYECHO_", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_")


@dataclass(frozen=True)
class Placement:
    """The cores of a load and of its own server. `load` is a list as for ``--cpu``; None is not pinned."""

    load: str | None
    server: int | None
    note: str


def placement(cpu: str | None, processes: int = 1) -> Placement:
    """Return cores for the load and its own server: different ones if possible. `cpu` is the list of ``--cpu``.

    A load of several `processes` has a core for each, if one is left for the server.

    Raises:
        UsageError: `cpu` is not a list of cores.
    """
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    chosen = set(available[-min(processes, max(len(available) - 1, 1)) :]) if cpu is None else parse_cores(cpu)
    others = [core for core in available if core not in chosen]
    if not others:
        return Placement(cpu, None, "the load and its own server share their cores")

    load = cpu or ",".join(map(str, sorted(chosen)))
    name = "core" if len(chosen) == 1 else "cores"
    return Placement(load, others[0], f"the load runs on {name} {load}, its own server on core {others[0]}")


@asynccontextmanager
async def open_own_server(
    options: OwnServerOptions | None = None, *, family: Literal[4, 6] | None = None, core: int | None = None
) -> AsyncIterator[OwnServer]:
    """Start a server on `core` and yield it once it accepts; end it after the block, whatever happens.

    If this process ends in any way, SIGKILL included, the kernel ends the server (on Linux).

    Raises:
        StartError: the server does not start; the text has its last line.
    """
    options = OwnServerOptions() if options is None else options
    server = OwnServer(options.command(family, f"anyecho-bench-{os.getpid()}-{next(_numbers)}"), core)
    try:
        await server.wait_ready()
        yield server
    finally:
        with CancelScope(shield=True):
            await server.end()


class OwnServer:
    """A server process. `address` is the one that it printed."""

    def __init__(self, arguments: Sequence[str], core: int | None) -> None:
        self.address = ""
        with ExitStack() as opened:
            self._errors = opened.enter_context(tempfile.TemporaryFile())
            read_end, write_end = os.pipe()
            opened.callback(os.close, write_end)
            try:
                self._process = _spawn(arguments, read_end, self._errors)
                _signal_at_eof(read_end, self._process.pid)
            except OSError as exc:
                raise StartError(f"cannot start a server: {exc.strerror}") from exc
            finally:
                os.close(read_end)
            if core is not None:
                with suppress(OSError):  # it has ended already
                    os.sched_setaffinity(self._process.pid, {core})
            self._opened = opened.pop_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_ns(self) -> int | None:
        """Return the nanoseconds of CPU time of all threads so far; None if the system does not tell.

        From schedstat, because stat has ticks of 10 ms. The time of a running thread is up to a tick old.
        """
        try:
            threads = [each.read_text() for each in Path(f"/proc/{self.pid}/task").glob("*/schedstat")]
        except OSError:
            return None

        return sum(int(text.split()[0]) for text in threads) if threads else None

    def failure(self) -> str:
        """Return why the server has ended, in one line; empty if it runs."""
        status = self._process.poll()
        if status is None:
            return ""

        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"the server ended with status {status}" + f": {last.removeprefix('anyecho: ')}" * bool(last)

    async def wait_ready(self) -> None:
        """Return once the server accepts. Raises `StartError`."""
        text = b""
        with move_on_after(_START_TIMEOUT):
            while chunk := await self._read():
                text += chunk
                if text.endswith(b"\n"):
                    self.address = text.decode().strip()
                    return

            self._wait()
        reason = self.failure() or f"it printed no address within {_START_TIMEOUT:.0f} s"
        raise StartError(f"cannot start a server: {reason}")

    async def end(self) -> None:
        """End the process, and release its pipes."""
        self._process.terminate()
        with move_on_after(_END_TIMEOUT):
            while await self._read():
                pass
            self._wait()
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._opened.close()

    async def _read(self) -> bytes:
        """Return bytes of the server's standard output; none once it has ended."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        await wait_readable(descriptor)
        return os.read(descriptor, 4096)

    def _wait(self) -> None:
        # The standard output of a process closes a moment before the process has a status.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_TIMEOUT)


def _spawn(arguments: Sequence[str], stdin: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    # The package of this process, even if another one is in the working directory, which -m would prefer.
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {name: text for name, text in os.environ.items() if not name.startswith(_FOREIGN_VARIABLES)}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "anyecho", *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,  # Ctrl-C on the terminal is for this process, which then ends the server
    )


def _signal_at_eof(pipe: int, pid: int) -> None:
    """Let the kernel send SIGIO to `pid`, which ends it, when the last writer of `pipe` has closed it.

    No code of the server takes part, and no thread of it, which would make each of its system calls slower. The
    settings are those of the pipe's open file description, which the server shares. Other systems ignore SIGIO.
    """
    fcntl.fcntl(pipe, fcntl.F_SETOWN, pid)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
