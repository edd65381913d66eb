"""What an echo over TLS costs, and an idle connection, and a handshake: ``python over_tls.py [ROUNDS [SECONDS]]``.

As `run.py` has it: one server at a time on the first core, the load on the last, every reply compared, the order
turned round each round, medians with the least and the most. TLS 1.3, and a certificate with a P-256 key.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import trustme

from anyecho.net.tls_records import Records
from process import Running, running, wait_until

PEERS = Path(__file__).parent / "peers"
BACKENDS = ("asyncio", "uvloop", "trio")
#: Connections, and bytes of a message.
WORKLOADS = {"50 x 64 B": (50, 64), "10 x 64 KiB": (10, 64 * 1024)}
IDLE = 500
#: Of handshakes made at a time.
BURST = 100
BURSTS = 3


class Connection:
    """One end of a closed loop: its next message goes out when the last is back and equal."""

    def __init__(self, port: int, context: ssl.SSLContext, message: bytes) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 20)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.records = Records(context, server_side=False, server_hostname="localhost")
        self.message = message
        self.returned = bytearray()
        self.records.handshake()
        self.sock.sendall(self.records.take())

    def shake_hands(self) -> None:
        while not self.records.handshake():
            self.records.feed(self.sock.recv(65536))
        self.sock.sendall(self.records.take())
        self.sock.setblocking(False)

    def say(self) -> None:
        self.records.send(self.message)
        self.flush()

    def flush(self) -> None:
        with suppress(BlockingIOError):
            while not self.records.flush(self.sock.send):
                pass

    def hear(self) -> bool:
        """Whether all of the message is back."""
        self.flush()
        while len(self.returned) < len(self.message):
            try:
                self.records.feed(self.sock.recv(65536))
            except BlockingIOError:
                return False

            while chunk := self.records.receive(65536):
                self.returned += chunk

        assert self.returned == self.message, "that is no echo"
        self.returned.clear()
        return True


def load(connections: list[Connection], seconds: float) -> tuple[int, float]:
    """Echoes, and the seconds that they took."""
    echoes = 0
    by_descriptor = {each.sock.fileno(): each for each in connections}
    with select.epoll() as epoll:
        for descriptor in by_descriptor:
            epoll.register(descriptor, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        start = time.perf_counter()
        over = start + seconds
        for each in connections:
            each.say()
        waiting = len(connections)
        while waiting:
            for descriptor, _ in epoll.poll():
                connection = by_descriptor[descriptor]
                while connection.hear():
                    echoes += 1
                    if time.perf_counter() < over:
                        connection.say()
                    else:
                        waiting -= 1
                        break

    return echoes, time.perf_counter() - start


@contextmanager
def connected(port: int, context: ssl.SSLContext, count: int, size: int) -> Iterator[list[Connection]]:
    connections = [Connection(port, context, os.urandom(size)) for _ in range(count)]
    try:
        for each in connections:
            each.shake_hands()
        yield connections
    finally:
        for each in connections:
            each.sock.close()


def measure(server: Running, context: ssl.SSLContext, seconds: float) -> Iterator[tuple[str, float]]:
    for name, (count, size) in WORKLOADS.items():
        with connected(server.port, context, count, size) as connections:
            load(connections, 0.1)
            spent = server.processor_ns()
            echoes, took = load(connections, seconds)
            spent = server.processor_ns() - spent
        yield f"{name}: CPU us/echo", spent / echoes / 1e3
        yield f"{name}: MB/s", echoes * size / took / 1e6

    with connected(server.port, context, 100, 1) as connections:  # whatever is made once is made now
        load(connections, 0)
    before = server.private_bytes()
    with ExitStack() as opened:
        for _ in range(IDLE // BURST):
            load(opened.enter_context(connected(server.port, context, BURST, 1)), 0)
        yield "KiB an idle connection", (server.private_bytes() - before) / IDLE / 1024

    yield "handshakes/s of its core", handshakes(server, context)


def handshakes(server: Running, context: ssl.SSLContext) -> float:
    """In a second of processor time, a hundred at a time: the server is suspended while the clients do their part.

    One after the other, it would be parking and waking up that is measured.
    """
    spent = 0
    for number in range(BURSTS + 1):
        wait_until(server.is_at_rest)
        server.suspend()
        connections = [Connection(server.port, context, b"x") for _ in range(BURST)]
        before = server.processor_ns()
        come_to_rest(server)
        server.suspend()
        for each in connections:
            each.shake_hands()
        come_to_rest(server)
        if number:  # the first is a warm-up
            spent += server.processor_ns() - before
        load(connections, 0)
        for each in connections:
            each.sock.close()

    return BURST * BURSTS / spent * 1e9


def come_to_rest(server: Running) -> None:
    server.resume()
    wait_until(server.is_at_rest, every=0.0002)


def commands(folder: Path) -> dict[str, tuple[str, ...]]:
    """What there is to measure, and how it is started."""
    certificate = str(folder / "certificate.pem")
    serve = ("-P", "-m", "anyecho", "serve", "-b", "tls://127.0.0.1:0", "--ssl-certfile", certificate)
    found = {
        f"anyecho-{engine}-{backend}": (sys.executable, *serve, "--engine", engine, "--backend", backend)
        for engine in ("events", "tasks")
        for backend in BACKENDS
    }
    names = ("uvloop-protocol", "asyncio-protocol", *(f"anyio-{backend}" for backend in BACKENDS))
    found |= {name: (sys.executable, str(PEERS / "tls.py"), name, certificate) for name in names}
    go = ["go", "build", "-o", str(folder / "go"), str(PEERS / "tls.go")]
    try:
        environment = os.environ | {"GO111MODULE": "off", "GOCACHE": str(folder / "cache"), "HOME": str(folder)}
        subprocess.run(go, check=True, capture_output=True, env=environment)
    except (OSError, subprocess.CalledProcessError) as exc:
        print(f"without Go: {exc}", file=sys.stderr)
    else:
        found["go"] = (str(folder / "go"), certificate)

    return found


def main(rounds: int = 5, seconds: float = 0.5) -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder:
        ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(f"{folder}/certificate.pem")
        servers = list(commands(Path(folder)).items())
        for turn in range(rounds):
            for name, command in servers[:: -1 if turn % 2 else 1]:
                print(f"round {turn + 1}/{rounds}  {name}", file=sys.stderr)
                with running(command, core=0) as server:
                    for figure, value in measure(server, context, seconds):
                        values[figure][name].append(value)

    print("|", *(f"{figure} |" for figure in ("", *values)))
    print("|---|" + "---:|" * len(values))
    for name, _ in servers:
        cells = [values[figure][name] for figure in values]
        texts = (f"{statistics.median(cell):.1f} ({min(cell):.1f}-{max(cell):.1f})" for cell in cells)
        print(f"| {name} |", *(f"{text} |" for text in texts))


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((int, float), sys.argv[1:], strict=False)))
