"""Real ``anyecho`` processes: start them, connect to them, and measure them."""

from __future__ import annotations

__all__ = (
    "TIMEOUT",
    "Process",
    "Processes",
    "accepts",
    "descendants",
    "descriptors",
    "echo",
    "is_alive",
    "peer",
    "port_of",
    "resident",
    "round_trip",
    "terminal",
    "unwritable",
    "wait_until",
)

import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import IO, Any

from tests.support.machine import needs_descriptors
from tests.support.peers import TIMEOUT, dial, receive_all
from tests.support.without_epoll import PRELUDE

_MAIN = "import sys; from anyecho.__main__ import main; sys.argv[0] = 'anyecho'; main()"


class Process:
    """A process. After `Processes.serve`, it has printed its `addresses`."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.popen = popen
        self.pid = popen.pid
        self.addresses: list[str] = []

    def read_lines(self, count: int) -> list[str]:
        """Wait for `count` lines of standard output; return them."""
        return self._read(self.popen.stdout, lambda text: text.count(b"\n") >= count).decode().splitlines()

    def read_bytes(self, count: int) -> bytes:
        """Wait for at least `count` bytes of standard output; return them."""
        return self._read(self.popen.stdout, lambda text: len(text) >= count)

    def read_errors(self, *, until: str) -> str:
        """Read standard error until it contains `until`; return it."""
        text = self._read(self.popen.stderr, lambda text: until.encode() in text)
        return text.decode(errors="replace")

    def _read(self, pipe: IO[bytes] | None, is_enough: Callable[[bytes], bool]) -> bytes:
        assert pipe is not None
        descriptor = pipe.fileno()
        text = b""
        deadline = time.monotonic() + TIMEOUT
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while not is_enough(text):
                assert selector.select(deadline - time.monotonic()), f"only {text!r} within {TIMEOUT} s"
                chunk = os.read(descriptor, 65536)
                assert chunk, f"it ended after {text!r}: {self.errors()}"
                text += chunk

        return text

    def errors(self) -> str:
        """Wait for the end of the process; return all of standard error."""
        assert self.popen.stderr is not None
        return self.popen.stderr.read().decode(errors="replace")

    def signal(self, signum: int = signal.SIGTERM) -> None:
        self.popen.send_signal(signum)

    def wait(self, timeout: float = TIMEOUT) -> int:
        return self.popen.wait(timeout)


class Processes:
    def __init__(self, *, fallback: bool) -> None:
        self._prelude = PRELUDE if fallback else ""
        self._started: list[Process] = []

    def start(
        self,
        *arguments: str,
        before: str = "",
        descriptors: int | None = None,
        closed: Iterable[int] = (),
        **popen: Any,
    ) -> Process:
        """Start ``anyecho *arguments``; run the code `before` first; `descriptors` is the hard descriptor limit.

        Descriptors in `closed` are closed at the start, as by ``>&-`` of a shell.
        """

        if descriptors is not None:
            needs_descriptors(descriptors)

        def prepare() -> None:
            # Signals that the parent of the suite ignores or blocks (nohup, `cmd &` in a script) would stay so.
            for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP):
                signal.signal(signum, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            if descriptors is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
            for descriptor in closed:
                os.close(descriptor)

        code = self._prelude + before + _MAIN
        pipes: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        process = Process(
            subprocess.Popen([sys.executable, "-c", code, *arguments], preexec_fn=prepare, **(pipes | popen))
        )
        self.adopt(process)
        return process

    def adopt(self, process: Process) -> None:
        """End `process`, which the caller has started, with the test."""
        self._started.append(process)

    def serve(self, *arguments: str, listeners: int = 1, **options: Any) -> Process:
        """Start ``anyecho serve *arguments``; return once it has reported as many addresses as `listeners`."""
        process = self.start("serve", *arguments, **options)
        process.addresses = process.read_lines(listeners)
        return process

    def run(self, *arguments: str, stdin: bytes = b"", **popen: Any) -> tuple[int, bytes, str]:
        """Run ``anyecho *arguments`` to its end; return exit status, standard output and standard error."""
        process = self.start(*arguments, stdin=subprocess.PIPE, **popen)
        output, errors = process.popen.communicate(stdin, timeout=TIMEOUT)
        return process.popen.returncode, output, errors.decode(errors="replace")

    def close(self) -> None:
        for process in self._started:
            if process.popen.poll() is None:
                process.popen.kill()
            process.popen.wait()
            for pipe in (process.popen.stdin, process.popen.stdout, process.popen.stderr):
                if pipe is not None:
                    pipe.close()


def resident(pid: int | str = "self", *, peak: bool = False) -> int:
    """Return the resident memory of process `pid` in bytes, current or peak."""
    field = "VmHWM:" if peak else "VmRSS:"
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def descriptors(pid: int | str = "self") -> int:
    """Return the number of open descriptors of process `pid`."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def descendants(pid: int) -> list[int]:
    """Return the numbers of all children of process `pid`, and theirs."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    children = [child for child, parent in parents.items() if parent == pid]
    return [*children, *(each for child in children for each in descendants(child))]


def is_alive(pid: int) -> bool:
    """Return whether process `pid` is there, and no zombie."""
    with suppress(OSError):  # it may end between the two calls
        os.kill(pid, 0)
        return sys.platform != "linux" or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"

    return False


def wait_until(condition: Callable[[], bool], timeout: float = TIMEOUT) -> None:
    """Poll for a state of another process; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition is still false"
        time.sleep(0.005)


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def round_trip(address: str, payload: bytes) -> bytes:
    """Send `payload` and half-close; return the echo up to EOF."""
    with dial(address) as sock:

        def send() -> None:
            sock.sendall(payload)
            sock.shutdown(socket.SHUT_WR)

        sending = Thread(target=send)
        sending.start()
        try:
            return receive_all(sock)
        finally:
            sending.join()


def accepts(address: str) -> bool:
    """Return whether `address` accepts a connection; makes one."""
    try:
        dial(address).close()
    except OSError:
        return False

    return True


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Yield both ends of a terminal: the keyboard, and the standard input of a process."""
    keyboard, screen = os.openpty()
    try:
        yield keyboard, screen
    finally:
        os.close(keyboard)
        os.close(screen)


@contextmanager
def peer(script: Callable[[socket.socket], None]) -> Iterator[str]:
    """Yield the address of a server in a thread, which runs `script` on its single connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            listener.settimeout(TIMEOUT)
            with listener.accept()[0] as sock:
                sock.settimeout(TIMEOUT)
                with suppress(ConnectionError):  # the client may give up first
                    script(sock)

        serving = Thread(target=serve)
        serving.start()
        try:
            yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            serving.join(TIMEOUT)


def echo(sock: socket.socket) -> None:
    """Echo until EOF; a script for `peer`."""
    while chunk := sock.recv(65536):
        sock.sendall(chunk)


def unwritable(kind: str) -> int:
    """Return a descriptor of a full disk, or of a pipe without a reader."""
    if kind == "full":
        return os.open("/dev/full", os.O_WRONLY)

    read_end, write_end = os.pipe()
    os.close(read_end)
    return write_end
