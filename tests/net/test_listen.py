"""From an address to listening sockets: all of them or none, nobody's stolen, nothing left behind."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from anyecho.address import TCPAddress, UnixAddress, parse_address
from anyecho.errors import BindError, UsageError
from anyecho.net import listen
from anyecho.net.listen import Listener, open_listeners
from anyecho.net.sockets import SocketOptions
from tests.machine import needs_ipv6


@asynccontextmanager
async def listening(*addresses: str, backlog: int = 16) -> AsyncIterator[list[Listener]]:
    listeners = await open_listeners(
        [parse_address(address) for address in addresses], backlog=backlog, options=SocketOptions()
    )
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


async def refused(*addresses: str) -> str:
    with pytest.raises(BindError) as caught:
        async with listening(*addresses):
            pass

    return str(caught.value)


@contextmanager
def taken(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as other:
        yield other.getsockname()[1]


@needs_ipv6
async def test_localhost_is_every_loopback_family_on_one_port() -> None:
    async with listening("tcp://localhost:0") as listeners:
        addresses = [listener.address for listener in listeners]
        port = listeners[0].sock.getsockname()[1]
        assert addresses == [TCPAddress(host="127.0.0.1", port=port), TCPAddress(host="::1", port=port)]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port)).close()


@needs_ipv6
async def test_no_host_is_every_interface_of_both_families() -> None:
    async with listening("tcp://:0") as listeners:
        port = listeners[0].sock.getsockname()[1]
        assert [str(listener.address) for listener in listeners] == [f"tcp://0.0.0.0:{port}", f"tcp://[::]:{port}"]


@needs_ipv6
async def test_a_free_port_that_is_taken_in_the_other_family_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bind = socket.socket.bind
    denied: list[int] = []

    def stingy(sock: socket.socket, address: tuple[str, int]) -> None:
        if sock.family == socket.AF_INET6 and len(denied) < 3:
            denied.append(address[1])
            raise OSError(errno.EADDRINUSE, "in use")
        bind(sock, address)

    monkeypatch.setattr(socket.socket, "bind", stingy)
    before = len(os.listdir("/proc/self/fd"))
    async with listening("tcp://localhost:0") as listeners:
        ports = {listener.sock.getsockname()[1] for listener in listeners}
        assert len(listeners) == 2
        assert len(ports) == 1
        assert len(denied) == 3

    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_family_that_the_machine_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bind = socket.socket.bind

    def without_ipv6(sock: socket.socket, address: tuple[str, int]) -> None:
        if sock.family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "no such address")
        bind(sock, address)

    monkeypatch.setattr(socket.socket, "bind", without_ipv6)
    async with listening("tcp://localhost:0") as listeners:
        assert [listener.sock.family for listener in listeners] == [socket.AF_INET]


async def test_a_taken_port_is_one_line_and_leaves_nothing_bound() -> None:
    with taken() as port, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
        probe.close()
        before = len(os.listdir("/proc/self/fd"))
        message = await refused(f"tcp://127.0.0.1:{free}", f"tcp://127.0.0.1:{port}")
        assert message == f"cannot listen on tcp://127.0.0.1:{port}: it is in use already"
        assert len(os.listdir("/proc/self/fd")) == before
        async with listening(f"tcp://127.0.0.1:{free}"):
            pass


@needs_ipv6
async def test_a_port_taken_in_one_family_only_is_taken() -> None:
    with taken("::1") as port:
        assert "in use" in await refused(f"tcp://localhost:{port}")
        with taken("127.0.0.1", port):  # nothing of ours is left on the other
            pass


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tcp://no-such-host.invalid:1", "no such host"),
        ("tcp://192.0.2.1:1", "this machine has no such address"),
        ("unix:/nonexistent/echo", "No such file or directory"),
        ("unix:/dev/null/echo", "Not a directory"),
        ("unix:/dev/null", "it exists and is not a socket"),
        ("unix:/proc/echo", "No such file or directory"),
        ("fd://9999", "descriptor 9999 is not open"),
        ("fd://0", "is not"),
        ("tls+fd://9999", "descriptor 9999 is not open"),
        ("udp://no-such-host.invalid:1", "no such host"),
        ("udp://192.0.2.1:1", "this machine has no such address"),
    ],
)
async def test_what_cannot_be_had_is_one_line_that_says_why(address: str, reason: str) -> None:
    message = await refused(address)
    assert message.startswith(f"cannot listen on {address}: ")
    assert reason in message
    assert "\n" not in message


async def test_a_listener_passes_its_options_on() -> None:
    async with listening("tcp://127.0.0.1:0") as [listener]:
        with socket.create_connection(listener.sock.getsockname()):
            listener.sock.setblocking(True)
            sock, _ = listener.sock.accept()
            with sock:
                tcp = {name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in _TCP}
                assert tcp == _TCP
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE) == 1


_TCP = {
    "TCP_NODELAY": 1,
    "TCP_NOTSENT_LOWAT": 131072,
    "TCP_USER_TIMEOUT": 60_000,
    "TCP_KEEPIDLE": 60,
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 6,
}


@pytest.mark.parametrize(("query", "mode"), [("", 0o600), ("?mode=666", 0o666), ("?mode=660", 0o660)])
async def test_a_socket_file_has_its_mode_from_the_first_moment(
    query: str, mode: int, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind = socket.socket.bind
    seen: list[int] = []

    def watched(sock: socket.socket, path: bytes) -> None:
        bind(sock, path)
        if not path.startswith(b"\0"):
            seen.append(stat.S_IMODE(os.stat(path).st_mode))

    monkeypatch.setattr(socket.socket, "bind", watched)
    before = os.umask(0o027)
    try:
        async with listening(f"unix:{short_path}/echo{query}"):
            assert seen == [mode]
            assert stat.S_IMODE((short_path / "echo").stat().st_mode) == mode
            assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


async def test_a_live_servers_path_is_not_stolen(short_path: Path) -> None:
    path = short_path / "echo"
    async with listening(f"unix:{path}") as [listener]:
        inode = path.stat().st_ino
        assert "it is in use already" in await refused(f"unix:{path}")
        assert path.stat().st_ino == inode
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            listener.sock.accept()[0].close()


async def test_a_server_too_busy_to_answer_is_alive(short_path: Path) -> None:
    path = str(short_path / "echo")
    async with listening(f"unix:{path}", backlog=0):
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)  # fills the backlog
            assert "it is in use already" in await refused(f"unix:{path}")


async def test_a_stale_path_is_taken_over(short_path: Path) -> None:
    path = short_path / "echo"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with listening(f"unix:{path}"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))

    assert not path.exists()


async def test_two_cannot_take_over_one_stale_path_at_once(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = short_path / "echo"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    unlink = os.unlink
    rivals: list[str] = []

    def unlink_while_a_rival_comes(target: bytes) -> None:
        """The rival has its turn after we found the path stale and before we removed it."""
        monkeypatch.setattr(os, "unlink", unlink)
        try:
            listen._bind_unix(UnixAddress(path=str(path)), 16, SocketOptions()).close()
            rivals.append("stole it")
        except OSError as exc:
            rivals.append(errno.errorcode[exc.errno or 0])
        unlink(target)

    monkeypatch.setattr(os, "unlink", unlink_while_a_rival_comes)
    async with listening(f"unix:{path}"):
        assert rivals == ["EBUSY"]


async def test_only_our_own_file_is_removed(short_path: Path) -> None:
    path = short_path / "echo"
    async with listening(f"unix:{path}"):
        path.unlink()
        path.write_text("somebody else's")

    assert path.read_text() == "somebody else's"


async def test_a_relative_path_is_removed_from_where_it_was_made(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(short_path)
    async with listening("unix:echo"):
        monkeypatch.chdir("/")

    assert not (short_path / "echo").exists()


async def test_an_abstract_name_needs_no_file(short_path: Path) -> None:
    name = f"anyecho-test-{short_path.name}"
    async with listening(f"unix:@{name}") as [listener]:
        assert str(listener.address) == f"unix:@{name}"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"\0{name}")
        assert "in use" in await refused(f"unix:@{name}")


async def test_a_path_of_107_bytes_is_listened_on(short_path: Path) -> None:
    path = str(short_path) + "/" + "x" * (106 - len(str(short_path)))
    async with listening(f"unix:{path}"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


@pytest.mark.parametrize("size", [-1, 2**31])
def test_a_size_that_no_kernel_takes_is_the_callers_fault(size: int) -> None:
    with pytest.raises(UsageError, match="tcp_notsent_lowat"):
        SocketOptions(tcp_notsent_lowat=size)
    with pytest.raises(UsageError, match="sndbuf"):
        SocketOptions(sndbuf=size)
    with pytest.raises(UsageError, match="rcvbuf"):
        SocketOptions(rcvbuf=size)


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_so_is_a_time_that_is_none(seconds: float) -> None:
    with pytest.raises(UsageError, match="tcp_user_timeout"):
        SocketOptions(tcp_user_timeout=seconds)


def test_a_very_short_time_is_not_for_ever() -> None:
    with socket.socket() as sock:
        SocketOptions(tcp_user_timeout=0.0001).apply(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1
