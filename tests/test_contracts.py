"""The "Raises" section of a docstring names exactly the errors that can be provoked, on every backend."""

from __future__ import annotations

import inspect
import os
import re
import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError, create_task_group, to_thread

import anyecho
from anyecho import backends
from anyecho.errors import unwrap_single
from anyecho.faults import Loss
from anyecho.measure.bench import run_bench
from anyecho.measure.options import BenchOptions
from anyecho.measure.ping import Ping
from anyecho.measure.ping_options import PingOptions
from anyecho.net.poller import Fallback, has_epoll
from anyecho.net.tls.contexts import Certificates
from tests.net.pairs import raw_pair, reset, stream_over
from tests.support.certificates import files_in
from tests.support.machine import skip
from tests.support.process import wait_until

TCP, ABSENT = "tcp://127.0.0.1:0", "/absent/file"
EXPORTED = [getattr(anyecho, name) for name in anyecho.__all__]
#: Exported functions and dataclasses that check their fields, and the public members of exported classes.
CONTRACTS: list[Any] = [
    *(each for each in EXPORTED if inspect.isfunction(each)),
    *(each for each in EXPORTED if is_dataclass(each) and hasattr(each, "__post_init__")),
    *(each for name, each in vars(anyecho.Client).items() if not name.startswith("_")),
    *(each for name, each in vars(anyecho.Server).items() if not name.startswith("_")),
    *(each for name, each in vars(anyecho.ThreadedServer).items() if not name.startswith("_")),
    *(Certificates.reload, BenchOptions, run_bench, Ping, Ping.run, PingOptions),
]


@dataclass
class Scene:
    """A client over a socket, the other end of it, and two fixtures."""

    client: anyecho.Client
    peer: socket.socket
    patch: pytest.MonkeyPatch
    path: Path

    async def echo(self) -> None:
        stream: Any = self.client.stream
        await anyecho.echo(stream)


Call: TypeAlias = Callable[..., Any]
#: By error: what raises it. A coroutine is awaited.
Provocations: TypeAlias = dict[type[BaseException], Callable[[Scene], Any]]


async def run_server(*addresses: str, **options: Any) -> None:
    async with anyecho.open_server(*addresses, **options) as server:
        await server.wait_closed()


async def run_controlled(control: str = TCP, address: str = TCP) -> None:
    async with anyecho.open_server(address) as server, anyecho.open_control(server, control):
        pass


async def run_admin(address: str = TCP) -> None:
    async with anyecho.open_server(TCP) as server, anyecho.open_admin(server.monitor(), address):
        pass


async def run_controlled_thread(control: str = TCP, address: str = TCP) -> None:
    with anyecho.threaded_server(address) as server, anyecho.threaded_control(server, control):
        pass


async def run_threaded(*addresses: str, **options: Any) -> None:
    with anyecho.threaded_server(*addresses, **options) as server:
        wait_until(lambda: not server._running)


async def send(client: anyecho.Client, payload: Any) -> None:
    async with client.send([payload]) as echo:
        async for _ in echo:
            pass


async def twice(call: Call) -> None:
    with unwrap_single():
        async with create_task_group() as tasks:
            tasks.start_soon(call)
            tasks.start_soon(call)


def serving(call: Call) -> Provocations:
    async def fail_to_accept(s: Scene) -> None:
        def accept(_: socket.socket) -> None:
            raise OSError(22, "Invalid argument")

        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
            s.patch.setattr(socket.socket, "accept", accept)
            await call(f"fd://{os.dup(listener.fileno())}")

    async def start_without_epoll(s: Scene) -> None:
        s.patch.delattr(select, "epoll", raising=False)
        await call(TCP, options=anyecho.ServeOptions(engine="events"))

    absent = anyecho.ServeOptions(tls=anyecho.TLSServerOptions(ssl_certfile=ABSENT))
    return {
        anyecho.AddressError: lambda _: call("nonsense"),
        anyecho.UsageError: lambda _: call("tls://127.0.0.1:0"),
        anyecho.CertificateError: lambda _: call("tls://127.0.0.1:0", options=absent),
        anyecho.BindError: lambda _: call(f"unix:{ABSENT}"),
        anyecho.StartError: start_without_epoll,
        OSError: fail_to_accept,
    }


def exchanging(call: Call) -> Provocations:
    async def lie(s: Scene) -> None:
        s.peer.sendall(b"wrong")
        await call(s.client, b"right")

    async def truncate(s: Scene) -> None:
        s.peer.shutdown(socket.SHUT_WR)
        await call(s.client, b"x")

    async def close(s: Scene) -> None:
        await s.client.aclose()
        await call(s.client, b"x")

    async def fail_before(s: Scene) -> None:
        with pytest.raises(anyecho.EchoStalled):
            await call(s.client, b"x")
        await call(s.client, b"x")

    async def exchange_datagram(*, served: bool) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            address = anyecho.UDPAddress(host="127.0.0.1", port=sock.getsockname()[1])
            if not served:
                sock.close()
            async with await anyecho.connect(address, options=anyecho.ConnectOptions(timeout=0.05)) as client:
                await call(client, b"x")

    return {
        anyecho.EchoMismatch: lie,
        anyecho.EchoTruncated: truncate,
        anyecho.EchoStalled: lambda s: call(s.client, b"x"),
        anyecho.EchoLost: lambda _: exchange_datagram(served=True),
        anyecho.UsageError: lambda s: call(s.client, "text"),
        anyecho.ConnectError: lambda _: exchange_datagram(served=False),
        BrokenResourceError: fail_before,
        BusyResourceError: lambda s: twice(lambda: call(s.client, b"x")),
        ClosedResourceError: close,
    }


async def open_without_descriptors(s: Scene) -> None:
    def epoll() -> None:
        raise OSError(24, "Too many open files")

    if not has_epoll():
        skip("epoll")
    s.patch.setattr(select, "epoll", epoll)
    await run_bench(TCP)


def refuse_epoll(s: Scene) -> None:
    """Let no descriptor be left for epoll."""

    def epoll() -> None:
        raise OSError(24, "Too many open files")

    if not has_epoll():
        skip("epoll")
    s.patch.setattr(select, "epoll", epoll)


def without_epoll(open_pages: Callable[[anyecho.Server], AbstractAsyncContextManager[object]]) -> Call:
    """Return what opens the pages of a server where no descriptor is left for epoll."""

    async def provoke(s: Scene) -> None:
        async with anyecho.open_server(TCP) as server:
            refuse_epoll(s)
            async with open_pages(server):
                pass

    return provoke


async def control_thread_without_epoll(s: Scene) -> None:
    with anyecho.threaded_server(TCP) as server:
        refuse_epoll(s)
        with anyecho.threaded_control(server, TCP):
            pass


async def echo_after_reset(s: Scene) -> None:
    reset(s.peer)
    await s.echo()


async def echo_after_close(s: Scene) -> None:
    await s.client.aclose()
    await s.echo()


def without_backend(s: Scene) -> None:
    s.patch.setattr(backends, "find_spec", lambda _: None)
    anyecho.run(run_server, backend="trio")


def without_descriptors(s: Scene) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(24, "Too many open files")

    s.patch.setattr(os, "open", refuse)
    anyecho.run(run_server)


def with_thread(call: Call, *addresses: str) -> Call:
    """Return what raises the error of `call` with a server in a thread of its own."""

    async def provoke(_: Scene) -> None:
        with anyecho.threaded_server(*addresses) as server:
            result = call(server)
            if inspect.isawaitable(result):
                await result

    return provoke


async def set_faults_in_vain(_: Scene) -> None:
    async with anyecho.open_server(TCP) as server:
        server.set_faults(Loss())


async def record_with_events(_: Scene) -> None:
    if not has_epoll():
        skip("epoll")
    async with anyecho.open_server(TCP, options=anyecho.ServeOptions(engine="events")) as server:
        server.record_connections()


def without_uvloop(s: Scene) -> Any:
    s.patch.setattr(backends, "find_spec", lambda _: None)
    return run_threaded(backend="uvloop")


async def ask_for_port(_: Scene) -> int:
    async with anyecho.open_server(TCP, TCP) as server:
        return server.port


def reload_without_files(s: Scene) -> None:
    files = files_in(s.path)
    options = anyecho.TLSServerOptions(ssl_certfile=files.cert, ssl_keyfile=files.key)
    certificates = Certificates(options, [anyecho.parse_address("tls://localhost:1")])
    files.cert.unlink()
    certificates.reload()


def in_another_thread(verb: Call) -> Provocations:
    async def call(_: Scene) -> None:
        async with anyecho.open_server(TCP) as server:
            await to_thread.run_sync(verb, server)

    return {RuntimeError: call}


UNKNOWN: Any = "curio"
UNTRUSTED = anyecho.ConnectOptions(tls=anyecho.TLSClientOptions(cacert=ABSENT))

TABLE: dict[Any, Provocations] = {
    anyecho.parse_address: {anyecho.AddressError: lambda _: anyecho.parse_address("nonsense")},
    anyecho.run: {
        anyecho.UsageError: lambda _: anyecho.run(run_server, backend=UNKNOWN),
        anyecho.BackendError: without_backend,
        anyecho.StartError: without_descriptors,
        RuntimeError: lambda _: anyecho.run(run_server),
    },
    anyecho.echo: {
        BrokenResourceError: echo_after_reset,
        ClosedResourceError: echo_after_close,
        BusyResourceError: lambda s: twice(s.echo),
    },
    anyecho.serve: serving(anyecho.serve),
    anyecho.open_server: serving(run_server),
    anyecho.forward: {
        anyecho.AddressError: lambda _: anyecho.forward("nonsense"),
        anyecho.UsageError: lambda _: anyecho.forward("udp://localhost:1"),
        anyecho.CertificateError: lambda _: anyecho.forward("tls://localhost:1", tls=UNTRUSTED.tls),
    },
    anyecho.open_control: {
        anyecho.AddressError: lambda _: run_controlled("nonsense"),
        anyecho.UsageError: lambda _: run_controlled(address="udp://127.0.0.1:0"),
        anyecho.BindError: lambda _: run_controlled(f"unix:{ABSENT}"),
        anyecho.StartError: without_epoll(lambda server: anyecho.open_control(server, TCP)),
    },
    anyecho.open_admin: {
        anyecho.AddressError: lambda _: run_admin("nonsense"),
        anyecho.UsageError: lambda _: run_admin("udp://127.0.0.1:0"),
        anyecho.BindError: lambda _: run_admin(f"unix:{ABSENT}"),
        anyecho.StartError: without_epoll(lambda server: anyecho.open_admin(server.monitor(), TCP)),
    },
    anyecho.threaded_control: {
        anyecho.AddressError: lambda _: run_controlled_thread("nonsense"),
        anyecho.UsageError: lambda _: run_controlled_thread(address="udp://127.0.0.1:0"),
        anyecho.BindError: lambda _: run_controlled_thread(f"unix:{ABSENT}"),
        anyecho.StartError: control_thread_without_epoll,
    },
    anyecho.connect: {
        anyecho.AddressError: lambda _: anyecho.connect("nonsense"),
        anyecho.UsageError: lambda _: anyecho.connect("fd://3"),
        anyecho.CertificateError: lambda _: anyecho.connect("tls://localhost:1", options=UNTRUSTED),
        anyecho.ConnectError: lambda _: anyecho.connect(f"unix:{ABSENT}"),
    },
    anyecho.Client.exchange: exchanging(anyecho.Client.exchange),
    anyecho.Client.send: exchanging(send),
    anyecho.Server.close: in_another_thread(anyecho.Server.close),
    anyecho.Server.abort: in_another_thread(anyecho.Server.abort),
    anyecho.Server.drain: in_another_thread(lambda server: server.drain().send(None)),
    anyecho.Server.wait_closed: in_another_thread(lambda server: server.wait_closed().send(None)),
    anyecho.Server.port: {anyecho.UsageError: ask_for_port},
    anyecho.Server.record_connections: {anyecho.UsageError: record_with_events},
    anyecho.threaded_server: serving(run_threaded) | {anyecho.BackendError: without_uvloop},
    anyecho.Server.set_faults: {anyecho.UsageError: set_faults_in_vain},
    anyecho.ThreadedServer.set_faults: {anyecho.UsageError: with_thread(lambda server: server.set_faults(Loss()))},
    anyecho.ThreadedServer.host: {
        anyecho.UsageError: with_thread(lambda server: server.host, "unix:@anyecho-test")
    },
    anyecho.ThreadedServer.port: {anyecho.UsageError: with_thread(lambda server: server.port, TCP, TCP)},
    anyecho.ThreadedServer.wait_for_connections: {
        TimeoutError: with_thread(lambda server: server.wait_for_connections(1, 0.01))
    },
    anyecho.ThreadedServer.wait_until: {
        TimeoutError: with_thread(lambda server: server.wait_until(lambda: False, 0.01))
    },
    anyecho.ThreadedServer.await_for_connections: {
        TimeoutError: with_thread(lambda server: server.await_for_connections(1, 0.01))
    },
    anyecho.ThreadedServer.await_until: {
        TimeoutError: with_thread(lambda server: server.await_until(lambda: False, 0.01))
    },
    run_bench: {
        anyecho.AddressError: lambda _: run_bench("nonsense"),
        anyecho.UsageError: lambda _: run_bench("udp://localhost:1", BenchOptions(size=1)),
        anyecho.ConnectError: lambda _: run_bench(f"unix:{ABSENT}"),
        anyecho.CertificateError: lambda _: run_bench("tls://localhost:1", BenchOptions(connect=UNTRUSTED)),
        anyecho.StartError: open_without_descriptors,
    },
    Certificates.reload: {anyecho.CertificateError: reload_without_files},
    anyecho.TCPAddress: {anyecho.AddressError: lambda _: anyecho.TCPAddress(host="localhost", port=65536)},
    anyecho.UDPAddress: {anyecho.AddressError: lambda _: anyecho.UDPAddress(host="localhost", port=65536)},
    anyecho.UnixAddress: {anyecho.AddressError: lambda _: anyecho.UnixAddress(path="")},
    anyecho.FDAddress: {anyecho.AddressError: lambda _: anyecho.FDAddress(fd=-1)},
    anyecho.ServeOptions: {anyecho.UsageError: lambda _: anyecho.ServeOptions(backlog=-1)},
    anyecho.ConnectOptions: {anyecho.UsageError: lambda _: anyecho.ConnectOptions(timeout=0)},
    anyecho.SocketOptions: {anyecho.UsageError: lambda _: anyecho.SocketOptions(sndbuf=-1)},
    anyecho.TLSServerOptions: {anyecho.UsageError: lambda _: anyecho.TLSServerOptions(ssl_certfile="")},
    anyecho.TLSClientOptions: {anyecho.UsageError: lambda _: anyecho.TLSClientOptions(cacert="")},
    Ping: {
        anyecho.AddressError: lambda _: Ping("nonsense"),
        anyecho.UsageError: lambda _: Ping("udp://localhost:1", PingOptions(connect=True)),
    },
    Ping.run: {
        anyecho.ConnectError: lambda _: Ping(f"unix:{ABSENT}").run(),
        anyecho.CertificateError: lambda _: Ping("tls://localhost:1", PingOptions(tls=UNTRUSTED.tls)).run(),
    },
    PingOptions: {anyecho.UsageError: lambda _: PingOptions(count=0)},
    BenchOptions: {anyecho.UsageError: lambda _: BenchOptions(size=0)},
}


def name_of(value: Any) -> str:
    return getattr(getattr(value, "fget", None) or value, "__qualname__", repr(value))


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Scene]:
    left, right = raw_pair("tcp")
    with right:
        async with anyecho.Client(stream_over(left, Fallback()), anyecho.ConnectOptions(timeout=0.05)) as client:
            yield Scene(client, right, monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("function", "error"), [(each, error) for each, errors in TABLE.items() for error in errors], ids=name_of
)
async def test_a_documented_error_is_raised(function: Any, error: type[BaseException], scene: Scene) -> None:
    with pytest.raises(error) as caught:
        result = TABLE[function][error](scene)
        if inspect.isawaitable(result):
            await result

    assert type(caught.value) is error


@pytest.mark.parametrize("function", CONTRACTS, ids=name_of)
def test_the_docstring_names_the_errors_that_can_be_provoked_and_no_other(function: Any) -> None:
    section = re.search(r"^Raises:\n((?: +.*\n?)+)", inspect.getdoc(function) or "", re.M)
    names = re.findall(r"^    (\w+): ", section[1], re.M) if section else []

    assert sorted(names) == sorted(error.__name__ for error in TABLE.get(function, {}))


def test_every_contract_in_the_table_is_compared() -> None:
    assert set(map(id, TABLE)) <= set(map(id, CONTRACTS))
