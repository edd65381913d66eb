"""Rows 1, 2 and 21: accept(2) fails, or more clients connect than are allowed."""

from __future__ import annotations

import errno
import os
import resource
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from anyio import to_thread

from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.faults.scene import SLACK, TCP, dialled, good_client, milliseconds, time_limit, unix
from tests.faults.table import Observed, Scene, injects
from tests.support.machine import needs_descriptors
from tests.support.peers import dial, receive_all, until
from tests.support.process import connect, descriptors, exchange, processor_seconds, round_trip, wait_until

#: Errors of accept(2) that concern a single connection: its section "Error handling", and EPERM of firewalls.
CONNECTION_ERRORS = (
    *("ECONNABORTED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "EINTR", "ENETDOWN", "ENETUNREACH", "ENONET"),
    *("ENOPROTOOPT", "EOPNOTSUPP", "EPERM", "EPROTO", "ETIMEDOUT"),
)


def outcome(sock: socket.socket) -> str:
    """Return what the server does with a new connection."""
    sock.settimeout(0.5)
    try:
        sock.sendall(b"?")
        return "echoed" if sock.recv(1) else "closed"
    except TimeoutError:
        return "waits"
    except ConnectionError:
        return "closed"


@injects(
    1,
    "RLIMIT_NOFILE leaves a server 20 descriptors; 30 clients connect over TCP and 30 over a Unix socket, and stay",
)
def no_descriptors_left(scene: Scene) -> Observed:
    server = scene.processes.serve(
        *("-b", TCP, "-b", str(unix(scene)), "--backend", scene.backend), listeners=2, descriptors=1000
    )
    with ExitStack() as opened:
        older = [opened.enter_context(connect(address)) for address in server.addresses]
        for sock in older:
            assert exchange(sock, b"before") == b"before"
        limit = descriptors(server.pid) + 20
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, 1000))
        callers = [opened.enter_context(connect(address)) for _ in range(30) for address in server.addresses]
        outcomes = {sock: outcome(sock) for sock in callers}
        held = [sock for sock, what in outcomes.items() if what == "echoed"]
        busy = _busy_while(server.pid, older)
        assert 10 <= len(held) <= 20
        for sock in [*older, *held]:
            assert exchange(sock, b"still here") == b"still here"

        for sock in callers:
            sock.close()
        wait_until(lambda: descriptors(server.pid) <= limit - 20)
        start = time.monotonic()
        for address in server.addresses:
            assert round_trip(address, b"new") == b"new"
        recovered = time.monotonic() - start

    assert busy < SLACK * 0.05
    assert recovered < time_limit(0.2)
    return {
        "those from before": "all echoed",
        **Counter(outcomes.values()),
        "CPU": f"{busy:.1%}",
        "recovered in": milliseconds(recovered),
    }


def _busy_while(pid: int, older: list[socket.socket]) -> float:
    """Return the CPU share of a server whose connections are nearly idle."""
    before, start = processor_seconds(pid), time.monotonic()
    while time.monotonic() - start < 0.3:
        for sock in older:
            assert exchange(sock, b"x") == b"x"
        time.sleep(0.05)

    return (processor_seconds(pid) - before) / (time.monotonic() - start)


@dataclass(eq=False)
class Refusal:
    """Makes accept(2) fail with the errors in `codes`."""

    codes: list[int] = field(default_factory=list)
    lasting: bool = False
    calls: int = 0

    def accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        self.calls += 1
        if not self.codes:
            return self.original(sock)

        code = self.codes[0] if self.lasting else self.codes.pop(0)
        raise OSError(code, os.strerror(code))

    original = staticmethod(socket.socket.accept)


@contextmanager
def refusing() -> Iterator[Refusal]:
    refusal = Refusal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "accept", lambda sock: refusal.accept(sock))
        yield refusal


@injects(
    1,
    "accept(2) fails with ENFILE, then ENOBUFS, then ENOMEM, for 0.2 s each, while 4 clients wait at each address",
)
async def out_of_buffers(scene: Scene) -> Observed:
    observed: dict[str, object] = {}
    async with open_server(TCP, unix(scene)) as server, good_client(server.addresses[0]):
        for name in ("ENFILE", "ENOBUFS", "ENOMEM"):
            with refusing() as refusal, ExitStack() as opened:
                refusal.codes, refusal.lasting = [getattr(errno, name)], True
                waiting = [opened.enter_context(dial(address)) for _ in range(4) for address in server.addresses]
                start = time.monotonic()
                await anyio.sleep(0.2)
                await until(lambda: refusal.calls >= 4)
                asked, pauses = refusal.calls, (time.monotonic() - start) / 0.1
                served = server.stats.accepted + len(waiting)
                refusal.codes.clear()
                start = time.monotonic()
                await until(lambda: server.stats.accepted == served)  # noqa: B023 - called in this turn only
                recovered = time.monotonic() - start
                for sock in waiting:
                    assert await to_thread.run_sync(exchange, sock, b"at last") == b"at last"

            # Two calls per pause of 0.1 s at each of the two listeners: the second with the spare descriptor.
            assert asked <= SLACK * 6 * pauses
            assert recovered < time_limit(0.2)
            assert server.stats.accept_errors[name] >= 2
            observed[name] = f"asked {asked} times, recovered in {milliseconds(recovered)}"

        assert server.stats.closed.keys() <= {"eof"}
        return observed


@injects(
    2,
    "accept(2) fails once with each of 13 errors, over TCP and over a Unix socket, while 8 clients connect to each",
)
async def connection_errors_in_accept(scene: Scene) -> Observed:
    with refusing() as refusal:
        async with open_server(TCP, unix(scene)) as server:
            for address in server.addresses:
                async with good_client(address):
                    for name in CONNECTION_ERRORS:
                        refusal.codes.append(getattr(errno, name))
                    with dialled(address, 8) as callers:
                        for sock in callers:
                            assert await to_thread.run_sync(exchange, sock, b"hello") == b"hello"

        codes = Counter({errno.errorcode[getattr(errno, name)]: 2 for name in CONNECTION_ERRORS})
        assert server.stats.accept_errors == codes
        assert server.stats.accepted == 2 * 9
        return {"accept_errors": dict(server.stats.accept_errors), "served": "16 of 16"}


@injects(21, "100 clients connect where 50 are allowed; then one of the 50 closes")
async def more_than_the_maximum(_: Scene) -> Observed:
    async with open_server(TCP, options=ServeOptions(max_connections=51, linger=0.1)) as server:
        [address] = server.addresses
        async with good_client(address):
            with dialled(address, 100) as callers:
                for sock in callers:
                    sock.sendall(b"?")
                await until(lambda: server.stats.active == 51)
                for sock in callers[:50]:
                    assert await to_thread.run_sync(sock.recv, 1) == b"?"
                assert server.stats.accepted == 51
                callers[0].close()
                assert await to_thread.run_sync(callers[50].recv, 1) == b"?"
                assert server.stats.accepted == 52

    return {"existing": "all echoed", "the next": "waited, and was served after one had closed"}


@injects(
    21, "100 clients connect where 50 are allowed, with over_limit=close; 10 of one address where 5 are allowed"
)
async def more_than_the_maximum_closed(scene: Scene) -> Observed:
    options = ServeOptions(max_connections=51, over_limit="close", linger=0.1)
    async with open_server(TCP, options=options) as server, good_client(server.addresses[0]):
        with dialled(server.addresses[0], 100) as callers:
            await until(lambda: server.stats.closed["over_limit"] == 50)
            for sock in callers[50:]:
                assert await to_thread.run_sync(receive_all, sock) == b""
            for sock in callers[:50]:
                assert await to_thread.run_sync(exchange, sock, b"in") == b"in"
            over_limit = dict(server.stats.closed)

    options = ServeOptions(max_connections_per_ip=5, linger=0.1)
    async with open_server(TCP, unix(scene), options=options) as server:
        one, other = server.addresses
        async with good_client(other):
            with dialled(one, 10) as callers:
                await until(lambda: server.stats.closed == {"per_ip": 5})
                for sock in callers[:5]:
                    assert await to_thread.run_sync(exchange, sock, b"in") == b"in"

                per_address = dict(server.stats.closed)

    return {"in all": over_limit, "of one address": per_address}


@injects(21, "300 clients connect, and stay, to a server with 200 descriptors and max_connections=10000")
def more_than_the_descriptors(scene: Scene) -> Observed:
    needs_descriptors(400)
    server = scene.processes.serve("-b", TCP, "--backend", scene.backend, descriptors=200)
    [address] = server.addresses
    with ExitStack() as opened:
        callers = [opened.enter_context(connect(address)) for _ in range(300)]
        for sock in callers[:136]:
            assert exchange(sock, b"in") == b"in"
        assert outcome(callers[136]) == "waits"
        free = 200 - descriptors(server.pid)
        # The server itself uses some of the 64 descriptors in reserve.
        assert free >= 40
        assert server.popen.poll() is None

    return {"held": 136, "descriptors left": free}
