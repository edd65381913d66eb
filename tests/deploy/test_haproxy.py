"""Three servers behind HAProxy, with the configuration of deploy/: a drain and a restart lose no connection."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.request import urlopen

import pytest

from tests.deploy.commands import DEPLOY, command_lines, on_backend
from tests.support.machine import needs_linux, needs_program
from tests.support.peers import converse, dial, exchange, receive, receive_all
from tests.support.process import TIMEOUT, Processes, port_of, wait_until

pytestmark = [needs_linux, needs_program("haproxy"), pytest.mark.slow]

CONFIG = DEPLOY / "haproxy" / "haproxy.cfg"
CLIENTS = 8
#: Connections before, during and after the restart.
SOME = 100
#: A PROXY header of version 2 for a connection of the proxy itself.
LOCAL_HEADER = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"


def test_haproxy_accepts_the_configuration() -> None:
    result = subprocess.run(["haproxy", "-c", "-f", str(CONFIG)], capture_output=True, text=True, timeout=30)

    # A warning is a line of output, not a failure.
    assert (result.returncode, result.stderr) == (0, ""), result.stdout


class Replica:
    """One of the servers, on an address of its own, so that no other socket takes its ports during a restart."""

    def __init__(self, processes: Processes, host: str, backend: str) -> None:
        self.processes = processes
        self.backend = backend
        self.host = host
        #: Of the echo and of ``--admin``. At the first start, the kernel chooses.
        self.port, self.admin_port = 0, 0
        self.start()

    def start(self) -> None:
        """Start it, again on the same ports; wait until it accepts connections."""
        [words] = [words for name, words in command_lines() if name == CONFIG.name]
        words[words.index("--admin") + 1] = f"{self.host}:{self.admin_port}"
        words[words.index(":10000")] = f"{self.host}:{self.port}"
        words[words.index("10.0.0.2")] = "127.0.0.1"
        self.process = self.processes.start(*on_backend(words, self.backend))
        self.port, self.admin_port = map(port_of, self.process.read_lines(2))

    def page(self, path: str) -> Any:
        """Return a page of ``--admin``."""
        with urlopen(f"http://{self.host}:{self.admin_port}{path}", timeout=TIMEOUT) as page:
            return json.load(page)

    @property
    def accepted(self) -> int:
        accepted: int = self.page("/stats")["accepted"]
        return accepted


class Balancer:
    def __init__(self, replicas: list[Replica], directory: Path, opened: ExitStack) -> None:
        self.socket = directory / "admin.sock"
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        text = CONFIG.read_text().replace("/run/haproxy", str(directory)).replace("maxconn 20000", "maxconn 100")
        text = text.replace("bind :10000", f"bind fd@{listener.fileno()}").replace("inter 1s", "inter 500ms")
        for replica in replicas:
            there, here = f"10.0.0.{replica.host[-2:]}:10000", f"{replica.host}:{replica.port}"
            text = text.replace(there, f"{here} port {replica.admin_port}")
        (directory / "haproxy.cfg").write_text(text)
        command = ["haproxy", "-db", "-f", str(directory / "haproxy.cfg")]
        self.process = subprocess.Popen(command, pass_fds=[listener.fileno()], stdout=subprocess.DEVNULL)
        opened.callback(self.process.wait)
        opened.callback(self.process.kill)
        self.address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"

    def states(self) -> list[str]:
        """Return the state of each server, like ``UP``."""
        with dial(f"unix:{self.socket}") as sock:
            sock.sendall(b"show stat\n")
            rows = receive_all(sock).decode().splitlines()
        column = rows[0].split(",").index("status")
        return [row.split(",")[column] for row in rows if re.match("servers,echo", row)]


class Load:
    """Clients that connect, send, half-close, compare the echo and connect again."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.stopped = Event()
        self.done = [0] * CLIENTS
        self.failures: list[str] = []
        self.threads = [Thread(target=self._run, args=(index,)) for index in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def _run(self, index: int) -> None:
        while not self.stopped.is_set():
            payload = b"client %d, connection %d" % (index, self.done[index])
            try:
                if (echo := converse(dial(self.address), payload)) != payload:
                    self.failures.append(f"{payload!r}: {echo!r}")
            except OSError as exc:
                self.failures.append(f"{payload!r}: {exc}")
            self.done[index] += 1

    def wait_for(self, count: int) -> None:
        """Wait for `count` more connections."""
        goal = sum(self.done) + count
        wait_until(lambda: sum(self.done) >= goal)

    def stop(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()


@pytest.fixture
def replicas(processes: Processes, backend: str) -> list[Replica]:
    # One after the other: on a busy machine, all at once could take longer than a start may.
    return [Replica(processes, f"127.0.0.{number}", backend) for number in (11, 12, 13)]


@pytest.fixture
def balancer(replicas: list[Replica], short_path: Path, opened: ExitStack) -> Balancer:
    balancer = Balancer(replicas, short_path, opened)
    wait_until(lambda: balancer.socket.exists() or balancer.process.poll() is not None)
    assert balancer.process.poll() is None
    return balancer


@pytest.fixture
def load(balancer: Balancer) -> Iterator[Load]:
    load = Load(balancer.address)
    yield load
    load.stop()


@pytest.mark.by_turns("backend")
def test_a_server_is_drained_and_restarted_under_load_without_a_failure(
    replicas: list[Replica], balancer: Balancer, load: Load
) -> None:
    load.wait_for(SOME)
    wait_until(lambda: all(each.accepted for each in replicas))
    drained = replicas[1]
    # A connection that is open keeps the server draining.
    with dial(f"tcp://{drained.host}:{drained.port}") as held:
        held.sendall(LOCAL_HEADER + b"before")
        assert receive(held, 6) == b"before"
        drained.process.signal()
        wait_until(lambda: balancer.states()[1].startswith("DOWN"))
        wait_until(lambda: drained.page("/stats")["open"] == 1)
        first_life = drained.accepted - 1
        load.wait_for(SOME)
        assert drained.accepted - 1 == first_life
    assert drained.process.wait() == 0

    drained.start()
    wait_until(lambda: drained.accepted > SOME // 3)
    load.stop()
    assert load.failures == []
    wait_until(lambda: balancer.states() == ["UP"] * 3)
    assert first_life + sum(each.accepted for each in replicas) == sum(load.done)
    # Health checks are neither connections of the echo nor log lines.
    wait_until(lambda: all(each.page("/stats")["open"] == 0 for each in replicas))
    assert {reason for each in replicas for reason in each.page("/stats")["closed"]} == {"eof"}
    for each in replicas:
        each.process.signal()
        assert each.process.wait() == 0
        assert each.process.errors() == ""


@pytest.mark.by_turns("backend")
def test_open_connections_continue_while_their_server_drains(replicas: list[Replica], balancer: Balancer) -> None:
    with ExitStack() as opened:
        # One for each server, because the one with the fewest connections gets the next.
        clients = [opened.enter_context(dial(balancer.address)) for _ in replicas]
        assert all(exchange(each, b"before") == b"before" for each in clients)
        peers = [each.page("/peers") for each in replicas]
        # The clients' own addresses are asserted by HAProxy.
        asserted = {tuple(peer["address"]) for each in peers for peer in each}
        assert asserted == {each.getsockname() for each in clients}
        assert [len(each) for each in peers] == [1] * 3
        for replica in replicas:
            replica.process.signal()
        wait_until(lambda: "UP" not in balancer.states())
        assert all(exchange(each, b"during") == b"during" for each in clients)
        for each in clients:
            each.shutdown(socket.SHUT_WR)
            assert receive_all(each) == b""
    assert [each.process.wait() for each in replicas] == [0] * 3
