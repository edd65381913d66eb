"""Rows 1, 2 and 21: accept(2) fails, or there are more who call than may come in."""

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
from tests.faults.scene import SLACK, TCP, dialled, late, milliseconds, neighbour, unix
from tests.faults.table import Observed, Scene, injects
from tests.machine import needs_descriptors
from tests.peers import dial, receive_all, until
from tests.process import connect, descriptors, exchange, processor_seconds, round_trip, wait_until

#: What accept(2) says of one connection that is gone already: its "Error handling", and firewalls' EPERM.
OF_ONE = (
    *("ECONNABORTED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "EINTR", "ENETDOWN", "ENETUNREACH", "ENONET"),
    *("ENOPROTOOPT", "EOPNOTSUPP", "EPERM", "EPROTO", "ETIMEDOUT"),
)


def fate(sock: socket.socket) -> str:
    """What becomes of one who calls."""
    sock.settimeout(0.5)
    try:
        sock.sendall(b"?")
        return "echoed" if sock.recv(1) else "closed"
    except TimeoutError:
        return "waits"
    except ConnectionError:
        return "closed"


@injects(1, "RLIMIT_NOFILE leaves a server 20 descriptors; 30 call over TCP and 30 over a Unix socket, and stay")
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
        fates = {sock: fate(sock) for sock in callers}
        held = [sock for sock, what in fates.items() if what == "echoed"]
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
    assert recovered < late(0.2)
    return {
        "those from before": "all echoed",
        **Counter(fates.values()),
        "CPU": f"{busy:.1%}",
        "recovered in": milliseconds(recovered),
    }


def _busy_while(pid: int, older: list[socket.socket]) -> float:
    """The share of a processor that a server takes for next to nothing."""
    before, start = processor_seconds(pid), time.monotonic()
    while time.monotonic() - start < 0.3:
        for sock in older:
            assert exchange(sock, b"x") == b"x"
        time.sleep(0.05)

    return (processor_seconds(pid) - before) / (time.monotonic() - start)


@dataclass(eq=False)
class Refusal:
    """What accept(2) fails with, while there is anything."""

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
    1, "accept(2) fails with ENFILE, then ENOBUFS, then ENOMEM, for 0.2 s each, while 4 wait at either address"
)
async def out_of_buffers(scene: Scene) -> Observed:
    observed: dict[str, object] = {}
    async with open_server(TCP, unix(scene)) as server, neighbour(server.addresses[0]):
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

            # Twice per pause of 0.1 s at each of the two: with the spare descriptor once more.
            assert asked <= SLACK * 6 * pauses
            assert recovered < late(0.2)
            assert server.stats.accept_errors[name] >= 2
            observed[name] = f"asked {asked} times, recovered in {milliseconds(recovered)}"

        assert server.stats.closed.keys() <= {"eof"}
        return observed


@injects(2, "accept(2) fails once with each of 13 errors, over TCP and over a Unix socket, while 8 call at either")
async def gone_before_accepted(scene: Scene) -> Observed:
    with refusing() as refusal:
        async with open_server(TCP, unix(scene)) as server:
            for address in server.addresses:
                async with neighbour(address):
                    for name in OF_ONE:
                        refusal.codes.append(getattr(errno, name))
                    with dialled(address, 8) as callers:
                        for sock in callers:
                            assert await to_thread.run_sync(exchange, sock, b"hello") == b"hello"

        codes = Counter({errno.errorcode[getattr(errno, name)]: 2 for name in OF_ONE})
        assert server.stats.accept_errors == codes
        assert server.stats.accepted == 2 * 9
        return {"accept_errors": dict(server.stats.accept_errors), "served": "16 of 16"}


@injects(21, "100 call where at most 50 may be; then one of the 50 goes")
async def more_than_the_maximum(_: Scene) -> Observed:
    async with open_server(TCP, options=ServeOptions(max_connections=51, linger=0.1)) as server:
        [address] = server.addresses
        async with neighbour(address):
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

    return {"existing": "all echoed", "the next": "waited, and was served when one had gone"}


@injects(21, "100 call where at most 50 may be, and over_limit=close; and 10 of one address where 5 may be")
async def more_than_the_maximum_closed(scene: Scene) -> Observed:
    options = ServeOptions(max_connections=51, over_limit="close", linger=0.1)
    async with open_server(TCP, options=options) as server, neighbour(server.addresses[0]):
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
        async with neighbour(other):
            with dialled(one, 10) as callers:
                await until(lambda: server.stats.closed == {"per_ip": 5})
                for sock in callers[:5]:
                    assert await to_thread.run_sync(exchange, sock, b"in") == b"in"

                per_address = dict(server.stats.closed)

    return {"in all": over_limit, "of one address": per_address}


@injects(21, "a server of 200 descriptors and max_connections=10000 is called by 300, who stay")
def more_than_the_descriptors(scene: Scene) -> Observed:
    needs_descriptors(400)
    server = scene.processes.serve("-b", TCP, "--backend", scene.backend, descriptors=200)
    [address] = server.addresses
    with ExitStack() as opened:
        callers = [opened.enter_context(connect(address)) for _ in range(300)]
        for sock in callers[:136]:
            assert exchange(sock, b"in") == b"in"
        assert fate(callers[136]) == "waits"
        free = 200 - descriptors(server.pid)
        # Of the 64 kept in reserve, the server itself has some.
        assert free >= 40
        assert server.popen.poll() is None

    return {"held": 136, "descriptors left": free}
