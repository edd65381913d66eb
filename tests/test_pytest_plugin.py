"""The fixtures under plain pytest and under the plugins for event loops, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.machine import ABSENT, needs

needs_trustme = needs(find_spec("trustme") is not None, "trustme")
#: Modules of the plugins, and their options.
PLUGINS = {
    "plain": (),
    "anyio": ("-p", "anyio.pytest_plugin"),
    "asyncio": ("-p", "pytest_asyncio.plugin", "-o", "asyncio_default_fixture_loop_scope=function"),
    "trio": ("-p", "pytest_trio.plugin"),
}
TESTS = {
    "plain": """
import socket


def test_plain(echo_server):
    with socket.create_connection((echo_server.host, echo_server.port)) as sock:
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"
    echo_server.wait_until(lambda: echo_server.connections[0].closed == "eof")
    assert echo_server.connections[0].received == b"hello"


def test_two_servers(echo_server_factory):
    first, second = echo_server_factory(), echo_server_factory(backend="trio")
    assert first.port != second.port
    second.drain()
""",
    "asyncio": """
import asyncio

import pytest
import pytest_asyncio


@pytest_asyncio.fixture
async def connection(echo_server):
    reader, writer = await asyncio.open_connection(echo_server.host, echo_server.port)
    yield reader, writer
    writer.close()
    await writer.wait_closed()


@pytest.mark.asyncio
async def test_asyncio(echo_server, connection):
    reader, writer = connection
    await echo_server.await_for_connections(1)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    await echo_server.adrain(0)
    assert await reader.read() == b""
""",
    "trio": """
import pytest
import trio


@pytest.fixture
async def stream(echo_server):
    async with await trio.open_tcp_stream(echo_server.host, echo_server.port) as stream:
        yield stream


@pytest.mark.trio
async def test_trio(echo_server, stream):
    await echo_server.await_for_connections(1)
    await stream.send_all(b"hello")
    assert await stream.receive_some() == b"hello"
    await echo_server.adrain(0)
    assert await stream.receive_some() == b""
""",
    "anyio": """
import anyio
import pytest


@pytest.fixture
async def stream(echo_server, anyio_backend):
    async with await anyio.connect_tcp(echo_server.host, echo_server.port) as stream:
        yield stream


@pytest.mark.anyio
async def test_anyio(echo_server, stream):
    await echo_server.await_for_connections(1)
    await stream.send(b"hello")
    assert await stream.receive() == b"hello"
    await echo_server.adrain(0)
    with pytest.raises(anyio.EndOfStream):
        await stream.receive()
""",
}
#: Fails if a fixture leaves a thread or a descriptor.
NO_LEAK = """
import os
import threading

import pytest


@pytest.fixture(scope="session", autouse=True)
def no_leak():
    from anyecho import BACKENDS, threaded_server

    for backend in BACKENDS:
        with threaded_server(backend=backend):  # libuv keeps two descriptors for the process
            pass
    before = len(os.listdir("/dev/fd"))
    yield
    threads = [each.name for each in threading.enumerate()]
    # trio keeps the threads of its clients for some seconds.
    assert [name for name in threads if not name.startswith("Trio thread")] == ["MainThread"]
    assert len(os.listdir("/dev/fd")) == before
"""


def run_pytest(
    directory: Path, files: dict[str, str], *arguments: str, autoload: bool = False, warnings: str = "error"
) -> subprocess.CompletedProcess[str]:
    """Run pytest on `files` in `directory`: with all plugins installed if `autoload`, else with this one."""
    for name, text in files.items():
        (directory / name).write_text(text)
    plugins = () if autoload else ("-p", "anyecho.pytest_plugin")
    command = [sys.executable, "-m", "pytest", "-q", "-W", warnings, "-p", "no:cacheprovider", "--rootdir", "."]
    environment = os.environ | ({} if autoload else {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    return subprocess.run(
        [*command, *plugins, *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )


def test_the_plugin_is_registered_by_its_name() -> None:
    [entry] = entry_points(group="pytest11", name="anyecho")
    assert entry.value == "anyecho.pytest_plugin"


@pytest.mark.parametrize("name", PLUGINS)
def test_the_fixtures_work_under(name: str, tmp_path: Path) -> None:
    if name in ("asyncio", "trio") and find_spec(f"pytest_{name}") is None:
        pytest.skip(f"{ABSENT}pytest-{name}")
    ended = run_pytest(tmp_path, {"conftest.py": NO_LEAK, "test_it.py": TESTS[name]}, *PLUGINS[name])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{1 + (name in ('plain', 'anyio'))} passed" in ended.stdout


@pytest.mark.timeout(180)
@pytest.mark.parametrize("processes", [(), ("-n", "1")], ids=["one process", "a worker of xdist"])
def test_the_fixtures_work_beside_every_other_plugin(processes: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("pytest_asyncio", "pytest_trio", "xdist"):
        pytest.importorskip(name, reason=f"{ABSENT}{name}")
    files = {f"test_with_{name}.py": text for name, text in TESTS.items()}
    option = "asyncio_default_fixture_loop_scope=function"
    ended = run_pytest(tmp_path, files, "-o", option, *processes, autoload=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "6 passed" in ended.stdout


CARRIERS = """
import socket
import ssl
import pytest
from anyecho import ServeOptions
from anyecho.faults import Cut, SelfSignedCertificate
from anyecho.handlers import upper


def over(context, server):
    sock = socket.create_connection((server.host, server.port), 10)
    return context.wrap_socket(sock, server_hostname="localhost")


def test_handler_and_faults(echo_server_factory):
    server = echo_server_factory(handler=upper, options=ServeOptions(faults=(Cut(bytes=3),)))
    with socket.create_connection((server.host, server.port), 10) as sock:
        sock.sendall(b"hello")
        assert sock.recv(9) == b"HEL"


def test_tls(echo_server_factory, echo_ca):
    server = echo_server_factory("tls://127.0.0.1:0")
    with over(ssl.create_default_context(cafile=echo_ca.cacert), server) as sock:
        sock.sendall(b"hello")
        assert sock.recv(9) == b"hello"
    with over(echo_ca.client_context(), server) as sock:
        assert sock.version() == "TLSv1.3"


def test_a_wrong_certificate(echo_server_factory, echo_ca):
    server = echo_server_factory("tls://127.0.0.1:0", options=ServeOptions(faults=(SelfSignedCertificate(),)))
    with pytest.raises(ssl.SSLCertVerificationError):
        over(echo_ca.client_context(), server)


def test_unix_and_udp(echo_server_factory, tmp_path):
    server = echo_server_factory("udp://127.0.0.1:0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.sendto(b"hello", (server.host, server.port))
        assert sock.recv(9) == b"hello"


def test_proxy(echo_server_factory):
    options = ServeOptions(proxy_trusted=("127.0.0.0/8",), proxy_protocol="v1")
    server = echo_server_factory("tcp://127.0.0.1:0", options=options)
    with socket.create_connection((server.host, server.port), 10) as sock:
        sock.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\\r\\nhello")
        assert sock.recv(9) == b"hello"
    assert server.connections[0].received == b"hello"
"""


@needs_trustme
def test_the_factory_makes_servers_of_every_kind(tmp_path: Path) -> None:
    ended = run_pytest(tmp_path, {"test_it.py": CARRIERS})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "5 passed" in ended.stdout


def test_an_error_of_the_server_is_an_error_of_the_test(tmp_path: Path) -> None:
    text = """
import socket


def test_it(echo_server, monkeypatch):
    def accept(_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(socket.socket, "accept", accept)
    with socket.create_connection((echo_server.host, echo_server.port), 10) as sock:
        assert sock.recv(1) == b""
"""
    ended = run_pytest(tmp_path, {"test_it.py": text})
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "ERROR test_it.py::test_it - OSError: [Errno 22] Invalid argument" in ended.stdout


def test_a_run_without_the_fixtures_imports_pytest_only() -> None:
    code = (
        "import sys, pytest; before = {*sys.modules}\nimport anyecho.pytest_plugin; print(*{*sys.modules} - before)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    own = {"anyecho", "anyecho._version", "anyecho.echo", "anyecho.pytest_plugin"}
    assert {*ended.stdout.split()} == own


def test_a_run_that_uses_no_fixture_loads_no_server(tmp_path: Path) -> None:
    text = "import sys\n\ndef test_it():\n    assert 'anyecho.server' not in sys.modules\n"
    ended = run_pytest(tmp_path, {"test_it.py": f"{text}    assert 'anyio' not in sys.modules\n"})
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_200_tests_with_a_server_each_leave_no_thread_and_no_descriptor(backend: str, tmp_path: Path) -> None:
    text = f"""
import socket
import pytest


@pytest.mark.parametrize("number", range(200))
def test_it(number, echo_server_factory):
    server = echo_server_factory(backend={backend!r})
    with socket.create_connection((server.host, server.port), 10) as sock:
        sock.sendall(b"hello")
        assert sock.recv(9) == b"hello"
"""
    ended = run_pytest(tmp_path, {"conftest.py": NO_LEAK, "test_it.py": text})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "200 passed" in ended.stdout
