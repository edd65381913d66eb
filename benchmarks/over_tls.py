"""The cost of an echo, an idle connection and a handshake over TLS: ``over_tls.py [ROUNDS [SECONDS [NAME,...]]]``.

As in `run.py`: one server at a time on the first core, the load on the last, every reply compared, alternating
order, medians with minima and maxima; then anyecho against the other servers, by medians and by rounds. TLS 1.3,
AES-128 for echoes, a P-256 certificate. The load is in C, and needs a compiler and OpenSSL's headers: a load in
Python cannot keep a server busy, and would measure how servers go to sleep and wake up.
"""

from __future__ import annotations

import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from pathlib import Path

import trustme

from anyecho.net.tls.records import Records
from process import Running, running, wait_until

PEERS = Path(__file__).parent / "peers"
BACKENDS = ("asyncio", "uvloop", "trio")
#: Connections, and bytes of a message.
WORKLOADS = {"50 x 64 B": (50, 64), "10 x 64 KiB": (10, 64 * 1024)}
#: The warm-up load, for 0.1 s. Without it, the servers on uvloop and anyio allocate kernel memory for each message,
#: and cost up to three times as much.
WARM_UP = (50, 64)
IDLE = 500
#: Handshakes at a time.
BURST = 100
BURSTS = 3
#: A figure of a server, and its limit as a multiple of another server's figure.
TARGETS = [
    *(
        (figure, f"anyecho-events-{backend}", limit, peer)
        for backend in BACKENDS
        for figure, limit, peer in (
            ("50 x 64 B: CPU us/echo", "<= 1.05", "go"),
            ("50 x 64 B: CPU us/echo", "<= 1.05", "uvloop-protocol"),
            ("10 x 64 KiB: MB/s", ">= 1.0", "uvloop-protocol"),
            ("handshakes/s of its core", ">= 1.0", "uvloop-protocol"),
        )
    ),
    *(
        ("50 x 64 B: CPU us/echo", f"anyecho-tasks-{backend}", limit, f"anyio-{backend}")
        for backend, limit in zip(BACKENDS, ("<= 0.4", "<= 0.6", "<= 0.75"), strict=True)
    ),
]


class Connection:
    """A client that sends one byte at a time."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 20)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.records = Records(context, server_side=False, server_hostname="localhost")
        self.records.handshake()
        self.sock.sendall(self.records.take())

    def shake_hands(self) -> None:
        while not self.records.handshake():
            self.records.feed(self.sock.recv(65536))
        self.sock.sendall(self.records.take())

    def echo(self) -> None:
        self.records.send(b"x")
        self.sock.sendall(self.records.take())
        while (back := self.records.receive(1)) is None:
            self.records.feed(self.sock.recv(65536))
        assert back == b"x", "that is no echo"


@contextmanager
def connected(port: int, context: ssl.SSLContext, count: int) -> Iterator[None]:
    """Yield `count` connections that have each had one echo."""
    connections = [Connection(port, context) for _ in range(count)]
    try:
        for each in connections:
            each.shake_hands()
        for each in connections:
            each.echo()
        yield
    finally:
        for each in connections:
            each.sock.close()


def echo(server: Running, name: str, folder: Path, seconds: float) -> Iterator[tuple[str, float]]:
    load(server, *WARM_UP, folder, 0.1)
    count, size = WORKLOADS[name]
    spent, echoes, took = load(server, count, size, folder, seconds)
    yield f"{name}: CPU us/echo", spent / echoes / 1e3
    yield f"{name}: MB/s", echoes * size / took / 1e6


def load(server: Running, count: int, size: int, folder: Path, seconds: float) -> tuple[float, float, float]:
    """Return the CPU nanoseconds of the server, the echoes, and their seconds."""
    arguments = (folder / "load", str(server.port), str(count), str(size), folder / "ca.pem")
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as loading:
        assert loading.stdin is not None
        assert loading.stdout is not None
        assert loading.stdout.readline() == "ready\n"
        spent = server.processor_ns()
        print(seconds, file=loading.stdin, flush=True)
        echoes, took = map(float, loading.stdout.readline().split())
        return server.processor_ns() - spent, echoes, took


def hold(server: Running, context: ssl.SSLContext) -> Iterator[tuple[str, float]]:
    with connected(server.port, context, 100):  # one-time allocations happen now
        pass
    before = server.private_bytes()
    with ExitStack() as opened:
        for _ in range(IDLE // BURST):
            opened.enter_context(connected(server.port, context, BURST))
        yield "KiB an idle connection", (server.private_bytes() - before) / IDLE / 1024

    yield "handshakes/s of its core", handshakes(server, context)


def handshakes(server: Running, context: ssl.SSLContext) -> float:
    """Return the handshakes per second of server CPU, a hundred at a time.

    The server is suspended while the clients do their part. Single handshakes would measure sleeping and waking.
    """
    spent = 0
    for number in range(BURSTS + 1):
        wait_until(server.is_at_rest)
        server.suspend()
        connections = [Connection(server.port, context) for _ in range(BURST)]
        before = server.processor_ns()
        come_to_rest(server)
        server.suspend()
        for each in connections:
            each.shake_hands()
        come_to_rest(server)
        if number:  # the first is a warm-up
            spent += server.processor_ns() - before
        for each in connections:
            each.echo()
            each.sock.close()

    return BURST * BURSTS / spent * 1e9


def come_to_rest(server: Running) -> None:
    server.resume()
    wait_until(server.is_at_rest, every=0.0002)


def commands(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the commands of the servers, by name."""
    certificate = str(folder / "certificate.pem")
    serve = ("-P", "-m", "anyecho", "serve", "-b", "tls://127.0.0.1:0", "--ssl-certfile", certificate)
    found: dict[str, tuple[str, ...]] = {
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


def main(rounds: int = 5, seconds: float = 0.5, names: str = "") -> None:
    """Measure the servers whose names begin with one of `names`."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder:
        ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(f"{folder}/certificate.pem")
        ca.cert_pem.write_to_path(f"{folder}/ca.pem")
        subprocess.run(("cc", "-O2", "-o", f"{folder}/load", PEERS / "tls_load.c", "-lssl", "-lcrypto"), check=True)
        wanted = tuple(filter(None, names.split(","))) or ("",)
        servers = [each for each in commands(Path(folder)).items() if each[0].startswith(wanted)]
        if not servers:
            sys.exit(f"over_tls.py: no server's name begins with {names}")
        kinds: list[Callable[[Running], Iterator[tuple[str, float]]]] = [
            *(partial(echo, name=name, folder=Path(folder), seconds=seconds) for name in WORKLOADS),
            partial(hold, context=context),
        ]
        # Compared servers are measured within seconds: the state of a machine changes over longer times.
        for turn, kind in product(range(rounds), kinds):
            for name, command in servers[:: -1 if turn % 2 else 1]:
                print(f"round {turn + 1}/{rounds}  {name}", file=sys.stderr)
                with running(command, core=0) as server:
                    for figure, value in kind(server):
                        values[figure][name].append(value)

    report(values)


def report(values: dict[str, dict[str, list[float]]]) -> None:
    print("|", *(f"{figure} |" for figure in ("", *values)))
    print("|---|" + "---:|" * len(values))
    for name in next(iter(values.values())):
        cells = [values[figure][name] for figure in values]
        texts = (f"{statistics.median(cell):.1f} ({min(cell):.1f}-{max(cell):.1f})" for cell in cells)
        print(f"| {name} |", *(f"{text} |" for text in texts))

    print("\n| figure | server | limit | by the medians | by the rounds |\n|---|---|---:|---:|---:|")
    for figure, server, limit, peer in TARGETS:
        if {server, peer} <= values[figure].keys():
            ours, theirs = values[figure][server], values[figure][peer]
            rounds = [mine / other for mine, other in zip(ours, theirs, strict=True)]
            quotient = f"{statistics.median(ours) / statistics.median(theirs):.2f}"
            spread = f"{statistics.median(rounds):.2f} ({min(rounds):.2f}-{max(rounds):.2f})"
            print("|", " | ".join((figure, server, f"{limit} x {peer}", quotient, spread)), "|")


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((int, float, str), sys.argv[1:], strict=False)))
