"""Unix sockets on paths: no live server loses its file, no other user keeps a server from starting."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anyecho.address import UnixAddress
from anyecho.net.sockets import SocketOptions
from anyecho.net.unix import bind_unix
from tests.net.listeners import listening, refused
from tests.support.machine import skip


@pytest.fixture(params=[0o027, 0o777, 0], ids="umask {:03o}".format)
def umask(request: pytest.FixtureRequest, short_path: Path) -> Iterator[int]:
    """Set the umask after the directory was made, which would otherwise have no permissions."""
    mask: int = request.param
    before = os.umask(mask)
    yield mask
    os.umask(before)


@contextmanager
def bound(path: Path, mode: int | None = None) -> Iterator[socket.socket]:
    sock, file = bind_unix(UnixAddress(path=str(path), mode=mode), backlog=16, options=SocketOptions())
    with sock:
        yield sock
        if file is not None:
            file.remove()


def refusal(path: Path, mode: int | None = None) -> str:
    with pytest.raises(OSError) as caught, bound(path, mode):
        pass

    return str(caught.value)


def mode_of(path: Path | str | bytes) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def refuse_fchmod(descriptor: int, mode: int) -> None:
    """As on macOS and the BSDs, where a socket has no mode of its own."""
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.mark.fault(row=22, injected="a umask of 0 permits every user; the mode is checked from bind(2) on")
@pytest.mark.parametrize("mode", [0o600, 0o666, 0o660], ids=oct)
def test_a_socket_file_is_never_open_to_more_than_its_mode(
    mode: int, umask: int, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mode is right before listen(2), for until then no peer can connect."""
    bind, listen, path = socket.socket.bind, socket.socket.listen, short_path / "echo"
    observed: list[tuple[str, bool]] = []

    def watched_bind(sock: socket.socket, address: bytes) -> None:
        bind(sock, address)
        observed.append(("bound", mode_of(address) & ~mode == 0))

    def watched_listen(sock: socket.socket, backlog: int) -> None:
        observed.append(("listening", mode_of(path) == mode))
        listen(sock, backlog)

    monkeypatch.setattr(socket.socket, "bind", watched_bind)
    monkeypatch.setattr(socket.socket, "listen", watched_listen)
    with bound(path, mode):
        assert observed[:2] == [("bound", True), ("listening", True)]
        assert mode_of(path) == mode


@pytest.mark.parametrize("mode", [0o600, 0o666], ids=oct)
def test_without_fchmod_the_mode_is_set_before_a_peer_can_connect(
    mode: int, umask: int, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen, path = socket.socket.listen, short_path / "echo"
    observed: list[int] = []

    def watched(sock: socket.socket, backlog: int) -> None:
        observed.append(mode_of(path))
        listen(sock, backlog)

    monkeypatch.setattr(os, "fchmod", refuse_fchmod)
    monkeypatch.setattr(socket.socket, "listen", watched)
    with bound(path, mode):
        assert observed[0] == mode


def test_without_o_path_the_mode_is_set_all_the_same(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fchmod", refuse_fchmod)
    monkeypatch.delattr(os, "O_PATH", raising=False)
    with bound(short_path / "echo", 0o604):
        assert mode_of(short_path / "echo") == 0o604


def test_a_file_of_another_thread_has_the_mode_of_the_umask(
    umask: int, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The umask belongs to the process: a thread that creates a file during the bind must not notice."""
    bind, other = socket.socket.bind, short_path / "other"

    def slow(sock: socket.socket, address: bytes) -> None:
        if not address.startswith(b"\0"):
            os.close(os.open(other, os.O_CREAT | os.O_WRONLY, 0o666))
        bind(sock, address)

    monkeypatch.setattr(socket.socket, "bind", slow)
    with bound(short_path / "echo"):
        assert mode_of(other) == 0o666 & ~umask


@pytest.mark.parametrize("what", ["file", "socket"])
def test_no_mode_is_set_of_a_file_that_replaced_the_socket(
    what: str, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer of the directory puts a link to a private file or socket where the socket was."""
    bind, private = socket.socket.bind, short_path / "private"
    if what == "file":
        private.touch()
    else:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(private))
    private.chmod(0o600)

    def replaced(sock: socket.socket, address: bytes) -> None:
        bind(sock, address)
        os.unlink(address)
        os.link(private, address)

    monkeypatch.setattr(os, "fchmod", refuse_fchmod)
    monkeypatch.setattr(socket.socket, "bind", replaced)
    assert "another program replaced the socket file" in refusal(short_path / "echo", 0o666)
    assert mode_of(private) == 0o600


@pytest.mark.fault(row=22, injected="the path of a live server")
async def test_a_live_servers_path_is_not_taken_over(short_path: Path) -> None:
    path = short_path / "echo"
    async with listening(f"unix:{path}") as [listener]:
        inode = path.stat().st_ino
        assert "it is in use already" in await refused(f"unix:{path}")
        assert path.stat().st_ino == inode
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            listener.sock.accept()[0].close()


async def test_a_path_with_a_full_accept_backlog_is_in_use(short_path: Path) -> None:
    path = str(short_path / "echo")
    async with listening(f"unix:{path}", backlog=0):
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)  # fills the backlog
            assert "it is in use already" in await refused(f"unix:{path}")


@pytest.mark.fault(row=22, injected="the path of a killed server")
async def test_a_stale_path_is_taken_over(short_path: Path) -> None:
    path = short_path / "echo"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with listening(f"unix:{path}"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))

    assert not path.exists()


async def test_two_servers_cannot_take_over_one_stale_path_at_once(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = short_path / "echo"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    unlink = os.unlink
    rivals: list[str] = []

    def unlink_after_a_rival_tries(target: bytes) -> None:
        """Start a second server between the check for a stale file and its removal."""
        monkeypatch.setattr(os, "unlink", unlink)
        try:
            bind_unix(UnixAddress(path=str(path)), backlog=16, options=SocketOptions())
            rivals.append("bound")
        except OSError as exc:
            rivals.append(errno.errorcode[exc.errno or 0])
        unlink(target)

    monkeypatch.setattr(os, "unlink", unlink_after_a_rival_tries)
    async with listening(f"unix:{path}"):
        assert rivals == ["EBUSY"]


@pytest.mark.fault(row=22, injected="another program replaces the socket file")
async def test_a_file_that_replaced_the_socket_file_is_not_removed(short_path: Path) -> None:
    path = short_path / "echo"
    async with listening(f"unix:{path}"):
        path.unlink()
        path.write_text("of another program")

    assert path.read_text() == "of another program"


async def test_a_relative_path_is_removed_from_where_it_was_made(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(short_path)
    async with listening("unix:echo"):
        monkeypatch.chdir("/")

    assert not (short_path / "echo").exists()


def test_an_absolute_path_is_bound_from_a_directory_that_was_removed(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short_path / "gone").mkdir()
    monkeypatch.chdir(short_path / "gone")
    (short_path / "gone").rmdir()
    with bound(short_path / "echo"):
        assert (short_path / "echo").is_socket()

    assert os.listdir(short_path) == []


@pytest.mark.fault(row=22, injected="an abstract name is in use")
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


def test_a_path_through_a_link_is_removed_from_where_it_was_made(short_path: Path) -> None:
    """link/.. is the parent of the target of the link, not of the link."""
    (short_path / "deep" / "er").mkdir(parents=True)
    (short_path / "link").symlink_to("deep/er")
    with bound(short_path / "link/../echo"):
        assert (short_path / "deep" / "echo").is_socket()

    assert os.listdir(short_path / "deep") == ["er"]


def test_locks_that_a_reader_can_take_keep_no_server_from_starting(short_path: Path) -> None:
    """flock(2) needs read permission only; an abstract name needs none."""
    found = os.stat(short_path)
    directory = os.open(short_path, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        with socket.socket(socket.AF_UNIX) as abstract:
            abstract.bind(f"\0anyecho/{found.st_dev}/{found.st_ino}/echo")
            with bound(short_path / "echo"):
                pass
    finally:
        os.close(directory)


_HOLD = """
import os, sys
from anyecho.address import UnixAddress
from anyecho.net.sockets import SocketOptions
from anyecho.net.unix import bind_unix

def held(sock, backlog):
    print("held", flush=True)
    sys.stdin.read()

import socket
socket.socket.listen = held
bind_unix(UnixAddress(path=sys.argv[1]), backlog=1, options=SocketOptions())
"""


def unshares() -> bool:
    """Whether a child can have a network namespace of its own."""
    try:
        return subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.parametrize("apart", [False, True], ids=["same namespace", "another network namespace"])
def test_a_server_that_is_about_to_listen_keeps_its_path_until_it_is_killed(apart: bool, short_path: Path) -> None:
    """Containers that share a volume: an abstract name would be visible in one of them only."""
    if apart and not unshares():
        skip("the right to make a network namespace")

    prefix = ["unshare", "-rn"] if apart else []
    rival = subprocess.Popen(
        [*prefix, sys.executable, "-c", _HOLD, f"{short_path}/echo"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with rival:
        assert rival.stdout is not None
        assert rival.stdout.readline() == b"held\n"
        assert "another server is about to listen" in refusal(short_path / "echo")
        rival.kill()
        rival.wait()

    # The killed server left its lock file and a stale socket file.
    assert sorted(os.listdir(short_path)) == [".echo.lock", "echo"]
    with bound(short_path / "echo"):
        assert os.listdir(short_path) == ["echo"]


def link(lock: Path) -> None:
    (lock.parent / "target").touch(0o400)
    lock.symlink_to("target")


def directory(lock: Path) -> None:
    lock.mkdir()


def fifo(lock: Path) -> None:
    os.mkfifo(lock)


def dangling(lock: Path) -> None:
    lock.symlink_to("nowhere")


@pytest.mark.parametrize("make_obstacle", [link, directory, fifo, dangling])
def test_in_a_sticky_directory_an_obstacle_at_the_lock_path_keeps_no_server_from_starting(
    make_obstacle: Callable[[Path], None], short_path: Path
) -> None:
    """Every user can create such a file in /tmp, and only its owner can remove it."""
    short_path.chmod(0o1777)
    make_obstacle(short_path / ".echo.lock")
    before = sorted(os.listdir(short_path))
    with bound(short_path / "echo"):
        pass

    assert sorted(os.listdir(short_path)) == before


def test_in_a_sticky_directory_the_lock_of_another_user_keeps_no_server_from_starting(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_path.chmod(0o1777)
    lock = short_path / ".echo.lock"
    lock.touch(0o666)
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        monkeypatch.setattr(os, "geteuid", lambda: lock.stat().st_uid + 1)
        with bound(short_path / "echo"):
            pass

    assert lock.exists()


@pytest.mark.parametrize("make_obstacle", [link, directory, fifo, dangling])
def test_an_obstacle_at_the_lock_path_is_named_in_the_error(
    make_obstacle: Callable[[Path], None], short_path: Path
) -> None:
    """Only a user that can write to the directory can create it, and this user can remove the socket too."""
    lock = short_path / ".echo.lock"
    make_obstacle(lock)
    assert f"{lock} is in the way; remove it" in refusal(short_path / "echo")
    assert mode_of(lock) != 0o666
    assert not (short_path / "echo").exists()


@pytest.mark.parametrize(
    ("directory_mode", "lock_mode"),
    [(0o700, 0o600), (0o755, 0o600), (0o775, 0o660), (0o777, 0o666), (0o707, 0o606), (0o1777, 0o600)],
    ids=oct,
)
def test_the_lock_opens_to_the_users_that_can_write_to_the_directory(
    directory_mode: int, lock_mode: int, umask: int, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen, observed = socket.socket.listen, list[int]()

    def watched(sock: socket.socket, backlog: int) -> None:
        observed.append(mode_of(short_path / ".echo.lock"))
        listen(sock, backlog)

    monkeypatch.setattr(socket.socket, "listen", watched)
    os.chown(short_path, -1, os.getegid())
    short_path.chmod(directory_mode)
    with bound(short_path / "echo"):
        assert observed == [lock_mode]


def test_a_file_system_without_locks_is_served_without_one(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with bound(short_path / "echo"):
        assert os.listdir(short_path) == ["echo"]


def test_a_lock_that_its_holder_removed_is_taken_anew(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder removes the lock file between open(2) and flock(2) of the next server."""
    flock, lock = fcntl.flock, short_path / ".echo.lock"
    rounds: list[bool] = []
    before = len(os.listdir("/proc/self/fd"))

    def late(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        if not rounds:
            lock.unlink()
        rounds.append(lock.exists())

    monkeypatch.setattr(fcntl, "flock", late)
    with bound(short_path / "echo"):
        assert rounds == [False, True]
        assert os.listdir(short_path) == ["echo"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_lock_is_held_until_its_file_is_removed(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a second server could lock the file, and a third one a new file, at the same time."""
    unlink = os.unlink

    def locked(path: bytes) -> None:
        with open(path) as rival, pytest.raises(BlockingIOError):
            fcntl.flock(rival, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlink(path)

    monkeypatch.setattr(os, "unlink", locked)
    with bound(short_path / "echo"):
        monkeypatch.undo()
        assert os.listdir(short_path) == ["echo"]


def test_a_bind_that_fails_leaves_nothing_behind(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(sock: socket.socket, backlog: int) -> None:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "listen", listen)
        assert os.strerror(errno.ENOBUFS) in refusal(short_path / "echo")

    assert os.listdir(short_path) == []
    assert len(os.listdir("/proc/self/fd")) == before


_FORK = """
import os, sys, anyecho
from anyecho.net.tls.contexts import TLSServerOptions

async def main():
    options = anyecho.ServeOptions(tls=TLSServerOptions(ssl_self_signed=True))
    async with anyecho.open_server("tls+unix:" + sys.argv[1], options=options) as server:
        if os.fork() == 0:
            sys.exit("the child unwinds")
        os.wait()
        print(os.path.exists(sys.argv[1]), os.path.exists(server.certificates.cacert), flush=True)
        server.certificates.close()
        os._exit(0)

anyecho.run(main, backend=sys.argv[2])
"""


def test_a_forked_child_that_unwinds_removes_no_file_of_its_parent(backend: str, short_path: Path) -> None:
    command = [sys.executable, "-c", _FORK, f"{short_path}/echo", backend]
    parent = subprocess.run(command, capture_output=True, timeout=30)
    assert parent.stdout == b"True True\n"
    assert b"the child unwinds" in parent.stderr
