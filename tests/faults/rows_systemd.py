"""Row 23: a service manager that passes valid or invalid sockets, and expects notifications."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.scene import SLACK
from tests.faults.table import Observed, Scene, injects
from tests.support.datagrams import udp_client
from tests.support.process import TIMEOUT, Process, connect, exchange, round_trip

#: Maximum interval of watchdog messages, in microseconds.
WATCHDOG = 200_000

#: What a service manager does between fork(2) and execve(2); at exit, prints the variables and descriptors left.
PASSED = """
import atexit, os
for number, given in enumerate({descriptors}, 3):
    os.dup2(given, number)
    os.close(given)
os.environ.setdefault("LISTEN_PID", str(os.getpid()))
def report():
    left = [name for name in os.environ if name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_"))]
    kept = [number for number in range(3, 3 + {count}) if os.get_inheritable(number)]
    os.write(2, f"left {{left}}, not close-on-exec {{kept}}\\n".encode())
atexit.register(report)
"""
#: A server whose event loop blocks at the first connection and reports it.
STUCK = """
import os, signal
from anyecho.net.accept import Acceptor
def stuck(self, *args):
    os.write(2, b"stuck\\n")
    signal.pause()
Acceptor.accept_some = stuck
"""


@contextmanager
def bound(directory: Path) -> Iterator[list[socket.socket]]:
    """Yield a bound socket of each kind, as a service manager has them."""
    with ExitStack() as opened:
        tcp = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix = opened.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(str(directory / "echo"))
        unix.listen()
        udp = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        yield [tcp, unix, udp]


def start(
    scene: Scene, sockets: Sequence[socket.socket], *arguments: str, before: str = "", **variables: str
) -> Process:
    # High enough not to collide with other descriptors.
    passed = [fcntl.fcntl(sock, fcntl.F_DUPFD, 100) for sock in sockets]
    before += PASSED.format(descriptors=passed, count=len(passed))
    environ = os.environ | {"LISTEN_FDS": str(len(passed))} | variables
    try:
        return scene.processes.start(
            *("serve", "--backend", scene.backend, *arguments), before=before, pass_fds=passed, env=environ
        )
    finally:
        for descriptor in passed:
            os.close(descriptor)


def echoes(address: str) -> bool:
    if not address.startswith("udp:"):
        return round_trip(address, b"hello") == b"hello"

    with udp_client(address) as sock:
        sock.send(b"hello")
        return sock.recv(100) == b"hello"


@injects(23, "a TCP, a Unix and a UDP socket are passed as web, local, web; then one asks for the two named web")
def mixed_kinds(scene: Scene) -> Observed:
    with bound(scene.directory) as sockets:
        all_of_them = start(scene, sockets, LISTEN_FDNAMES="web:local:web")
        named = start(scene, sockets, "-b", "fd://web", LISTEN_FDNAMES="web:local:web")
        addresses, of_web = all_of_them.read_lines(3), named.read_lines(2)
        assert [address.partition(":")[0] for address in addresses] == ["tcp", "unix", "udp"]
        assert of_web == [addresses[0], addresses[2]]
        assert all(echoes(address) for address in addresses)
        for process in (all_of_them, named):
            process.signal()
            assert process.wait() == 0
        left = all_of_them.errors()
        assert left == "left [], not close-on-exec []\n"
        *warnings, _ = named.errors().splitlines()
    assert warnings == ["main: passed, but not served: fd://4 (local)"]
    return {
        "served": [address.partition(":")[0] for address in addresses],
        "at the end": left.strip(),
        **{"fd://web": warnings[0]},
    }


@injects(
    23,
    "LISTEN_FDS is one too many; LISTEN_FDNAMES one too few; a connection is passed; LISTEN_PID is another process",
)
def wrong_in_every_way(scene: Scene) -> Observed:
    with bound(scene.directory) as sockets, ExitStack() as opened:
        left, _right = map(opened.enter_context, socket.socketpair())
        started = {
            "too many": start(scene, sockets, LISTEN_FDS="4"),
            "names": start(scene, sockets, LISTEN_FDNAMES="web:local"),
            "connection": start(scene, [left]),
            "another's": start(scene, sockets, "-b", "fd://web", LISTEN_PID="1"),
        }
        lines = {}
        for what, process in started.items():
            assert process.wait() == 3
            [lines[what], _] = process.errors().splitlines()
            assert lines[what].startswith("anyecho: ")

    return {what: line.removeprefix("anyecho: ") for what, line in lines.items()}


@contextmanager
def notified(scene: Scene, name: str) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """Yield a notification socket, and the environment that tells a server to use it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        place = str(scene.directory / name)
        manager.bind(place)
        manager.settimeout(TIMEOUT)
        yield manager, {"NOTIFY_SOCKET": place, "WATCHDOG_USEC": str(WATCHDOG)}


@injects(23, "a watchdog of 0.2 s: a server starts, has a connection, drains; another has a stuck event loop")
def watchdog(scene: Scene) -> Observed:
    with (
        bound(scene.directory) as sockets,
        notified(scene, "well") as (manager, well),
        notified(scene, "stuck") as (other, stuck),
    ):
        process = start(scene, sockets[:1], **well)
        victim = start(scene, sockets[1:], before=STUCK, **stuck)
        assert manager.recv(1000).startswith(b"READY=1\n")
        with connect(process.read_lines(1)[0]) as sock:
            assert exchange(sock, b"hello") == b"hello"
            assert [manager.recv(1000) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            process.signal(signal.SIGTERM)
            while (message := manager.recv(1000)) == b"WATCHDOG=1":
                pass
            assert message.startswith(b"STOPPING=1\n")
        assert process.wait() == 0

        assert other.recv(1000).startswith(b"READY=1\n")
        with connect(victim.read_lines(2)[0]):
            victim.read_errors(until="stuck\n")
            other.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    assert other.recv(1000) == b"WATCHDOG=1"
            other.settimeout(SLACK * WATCHDOG / 1e6)
            with pytest.raises(TimeoutError):
                other.recv(1000)

    return {"told": "READY, WATCHDOG, STOPPING", "stuck": "no WATCHDOG for 0.6 s"}
