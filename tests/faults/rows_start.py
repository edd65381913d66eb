"""Rows 22, 25 and 26: paths, ports and names that are unavailable or in use."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from anyecho.address import Address, TCPAddress, UnixAddress, parse_address
from anyecho.client.client import connect
from anyecho.errors import BindError, ConnectError
from anyecho.server.server import open_server
from tests.faults.scene import milliseconds, served_in, time_limit, unix
from tests.faults.table import Observed, Scene, injects
from tests.support.peers import dial
from tests.support.process import TIMEOUT, Process, port_of, round_trip

OTHER_UID = 65534


async def _bind_error(address: Address) -> str:
    """Return why `address` cannot be listened on."""
    with pytest.raises(BindError) as refused:
        async with open_server(address):
            pytest.fail("it opened")
    return str(refused.value).rpartition(": ")[2]


@contextmanager
def unwritable(directory: Path) -> Iterator[None]:
    """Make `directory` read-only within the block; as root, change to another user too."""
    directory.chmod(0o555)
    if root := os.geteuid() == 0:
        os.seteuid(OTHER_UID)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        directory.chmod(0o755)


@injects(22, "a path is stale; in use; a file; in a missing directory; in a read-only directory")
async def path_in_use(scene: Scene) -> Observed:
    address = unix(scene)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(address.path)
        killed.listen()
    async with open_server(address):
        await served_in(address)
        live = await _bind_error(address)
        await served_in(address)
    assert os.listdir(scene.directory) == []

    with unwritable(scene.directory):
        denied = await _bind_error(address)
    os.mknod(address.path)
    file = await _bind_error(address)
    assert stat.S_ISREG(os.stat(address.path).st_mode)
    nowhere = await _bind_error(UnixAddress(path=str(scene.directory / "no" / "echo")))
    assert os.listdir(scene.directory) == ["echo"]
    refused = {"live": live, "not writable": denied, "a file": file, "no directory": nowhere}
    assert all(refused.values())
    return {"stale": "taken over", **refused}


@injects(22, "another program has replaced the socket file when the server ends; an abstract name is in use")
async def replaced_path(scene: Scene) -> Observed:
    address = unix(scene)
    with socket.socket(socket.AF_UNIX) as other:
        async with open_server(address):
            os.unlink(address.path)
            other.bind(address.path)
            other.listen()
        dial(address).close()

    abstract = parse_address(f"unix:@{scene.directory.name}")
    async with open_server(abstract):
        await served_in(abstract)
        taken = await _bind_error(abstract)
    async with open_server(abstract):
        await served_in(abstract)
    assert os.listdir(scene.directory) == ["echo"]
    return {"the other's": "still there, still answering", "abstract, taken": taken, "abstract, left": "free again"}


@injects(22, "a umask of 0, which permits every user; the mode is checked as soon as bind(2) has returned")
async def mode_from_the_start(scene: Scene) -> Observed:
    bind, modes = socket.socket.bind, []

    def record_mode(sock: socket.socket, address: Any) -> None:
        bind(sock, address)
        if isinstance(address, bytes) and address.startswith(os.fsencode(scene.directory)):
            modes.append(stat.S_IMODE(os.stat(address).st_mode))

    umask = os.umask(0)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket.socket, "bind", record_mode)
            for address in (unix(scene), UnixAddress(path=unix(scene).path, mode=0o660)):
                async with open_server(address):
                    modes.append(stat.S_IMODE(os.stat(address.path).st_mode))
    finally:
        os.umask(umask)

    assert modes == [0o600, 0o600, 0o660, 0o660]
    return {"by default": "0600, then and later", "with ?mode=660": "0660, then and later"}


@injects(25, "the kernel assigns a client the port that it connects to, so that TCP connects the socket to itself")
async def self_connection(_: Scene) -> Observed:
    connect_ex, connected = socket.socket.connect_ex, []

    def from_there(sock: socket.socket, address: Any) -> int:
        sock.bind(address)
        status = connect_ex(sock, address)
        connected.append(sock.getsockname() == sock.getpeername())
        return status

    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect_ex", from_there)
        start = time.monotonic()
        with pytest.raises(ConnectError) as refused:
            await connect(TCPAddress(host=host, port=port))
        took = time.monotonic() - start

    assert connected == [True]
    assert str(refused.value).endswith("Connection refused")
    return {"said": str(refused.value).replace(str(port), "PORT"), "in": milliseconds(took)}


NO_IPV6 = """
import errno, socket
make = socket.socket.__init__
def without_ipv6(self, family=-1, *args, **named):
    if family == socket.AF_INET6:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
    make(self, family, *args, **named)
socket.socket.__init__ = without_ipv6
"""
NAME_SERVER = """
import os, socket, threading
look_up = socket.getaddrinfo
def asked(host, *args, **named):
    if named.get("flags"):
        return look_up(host, *args, **named)
    {answer}
socket.getaddrinfo = asked
"""
NO_SUCH_HOST = NAME_SERVER.format(answer='raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")')
DEAD = NAME_SERVER.format(answer='os.write(2, b"asked\\n"); threading.Event().wait()')


def _start_error(process: Process) -> tuple[str, float]:
    """Return the line with which the process exits, and after how many seconds."""
    start = time.monotonic()
    output, errors = process.popen.communicate(timeout=TIMEOUT)
    took = time.monotonic() - start
    assert (process.popen.returncode, output) == (3, b""), errors
    [line] = errors.decode().removeprefix("asked\n").splitlines()
    assert took < time_limit(1.0)
    return line, took


@injects(26, "beside a usable path: a port in use, an unknown host, IPv6 without support")
def cannot_listen(scene: Scene) -> Observed:
    path = str(unix(scene))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        in_use = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        impossible = {in_use: "", "tcp://no.such.host:7007": NO_SUCH_HOST, "tcp://[::1]:0": NO_IPV6}
        complaints = [
            _start_error(_start(scene, "serve", "-b", path, "-b", address, before=before))
            for address, before in impossible.items()
        ]
    assert os.listdir(scene.directory) == []

    server = _start(scene, "serve", "-b", "tcp://localhost:0", before=NO_IPV6)
    [address] = server.read_lines(1)
    assert round_trip(address, b"IPv4") == b"IPv4"
    lines = [line.replace(str(port_of(in_use)), "PORT") for line, _ in complaints]
    slowest = max(took for _, took in complaints)
    return {"exit 3": lines, "within": f"{slowest:.2f} s", "left behind": "nothing", "localhost": "IPv4 alone"}


def _start(scene: Scene, *arguments: str, before: str) -> Process:
    return scene.processes.start(*arguments, "--backend", scene.backend, before=before)


@injects(26, "a name server never answers: a client with a timeout of 0.2 s, a server that gets SIGTERM")
def name_server_dead(scene: Scene) -> Observed:
    client = _start(scene, "send", "tcp://slow:7007", "--timeout", "200ms", "hello", before=DEAD)
    line, took = _start_error(client)
    server = _start(scene, "serve", "-b", str(unix(scene)), "-b", "tcp://slow:0", before=DEAD)
    server.read_errors(until="asked\n")
    start = time.monotonic()
    server.signal()
    assert server.wait() == 0
    ended = time.monotonic() - start
    assert ended < time_limit(0.5)
    assert os.listdir(scene.directory) == []
    return {"client, exit 3": line, "after": f"{took:.2f} s", "server, exit 0 after": f"{ended:.2f} s"}
