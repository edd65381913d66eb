"""A service manager for tests: it passes a TCP, a Unix and a UDP socket to ``anyecho serve``."""

from __future__ import annotations

__all__ = ("Manager", "echoes", "end")

import fcntl
import os
import socket
from contextlib import ExitStack
from typing import Any

from tests.support.datagrams import udp_client
from tests.support.process import Process, Processes, round_trip

#: What a service manager does between fork(2) and execve(2).
PASS = """
import os
if "PASSED" not in os.environ:  # a worker starts as its supervisor did
    for number, given in enumerate({descriptors}, 3):
        os.dup2(given, number)
        os.close(given)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["PASSED"] = "yes"
"""


class Manager:
    """Binds a TCP, a Unix and a UDP socket, and passes them to each server that it starts."""

    def __init__(self, processes: Processes, opened: ExitStack, path: str) -> None:
        self.processes = processes
        self.opened = opened
        tcp = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix = opened.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(path)
        unix.listen()
        udp = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        self.sockets = [tcp, unix, udp]
        self.addresses = [
            f"tcp://127.0.0.1:{tcp.getsockname()[1]}",
            f"unix:{path}",
            f"udp://127.0.0.1:{udp.getsockname()[1]}",
        ]

    def start(self, *arguments: str, names: str = "web:local:web", before: str = "", **variables: str) -> Process:
        # High enough not to collide with other descriptors.
        descriptors = [fcntl.fcntl(sock, fcntl.F_DUPFD, 100) for sock in self.sockets]
        environ = os.environ | {"LISTEN_FDS": str(len(descriptors)), "LISTEN_FDNAMES": names} | variables
        before += PASS.format(descriptors=descriptors)
        try:
            return self.processes.start("serve", *arguments, before=before, pass_fds=descriptors, env=environ)
        finally:
            for each in descriptors:
                os.close(each)

    def serve(self, *arguments: str, listeners: int = 3, **options: Any) -> Process:
        process = self.start(*arguments, **options)
        process.addresses = process.read_lines(listeners)
        return process

    def refusal(self, *arguments: str, **options: Any) -> str:
        """Start a server that must fail with exit status 3; return its line on standard error."""
        process = self.start(*arguments, **options)
        assert process.wait() == 3
        errors = process.errors()
        assert errors.count("\n") == 1
        return errors.removeprefix("anyecho: ").rstrip()


def echoes(address: str) -> bool:
    if not address.startswith("udp:"):
        return round_trip(address, b"hello") == b"hello"

    with udp_client(address) as sock:
        sock.send(b"hello")
        return sock.recv(100) == b"hello"


def end(process: Process) -> str:
    """Send SIGTERM; return standard error after exit status 0."""
    process.signal()
    assert process.wait() == 0
    return process.errors()
