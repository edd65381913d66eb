"""Bind a Unix socket to a path: lock, take over a stale socket file, set its mode, remove it.

This module does not change the umask or other state of the process: other threads create files too.
"""

from __future__ import annotations

__all__ = ("SocketFile", "bind_unix")

import errno
import fcntl
import os
import socket
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from anyecho.address import UnixAddress
from anyecho.net.sockets import SocketOptions, closed_on_error

#: Owner only, unless the address says otherwise (``?mode=666``).
_DEFAULT_MODE = 0o600
#: Attempts to lock a file that its previous holder may remove between open(2) and flock(2).
_LOCK_TRIES = 100
_LOCK_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(frozen=True)
class SocketFile:
    """The file of a bound Unix socket: its absolute path, its status after bind(2), the process that bound it."""

    path: bytes
    status: os.stat_result
    owner: int = field(default_factory=os.getpid)

    def remove(self) -> None:
        """Remove the file if it is still the file that this process bound.

        A forked child has a copy of this object, but the file belongs to the parent, which still listens.
        """
        if os.getpid() == self.owner:
            with suppress(OSError):
                if os.path.samestat(os.lstat(self.path), self.status):
                    os.unlink(self.path)


def bind_unix(
    address: UnixAddress, *, backlog: int, options: SocketOptions
) -> tuple[socket.socket, SocketFile | None]:
    """Return a non-blocking socket bound to `address`, and its file, which is None for an abstract name.

    A socket with a file listens already. Raises `OSError`: EADDRINUSE if a server listens on the path, EEXIST if
    the path is not a socket, EBUSY if another server is about to listen. After an error no file is left behind.
    """
    with closed_on_error(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as sock:
        sock.setblocking(False)
        options.apply(sock)
        path, file = os.fsencode(address.path), None
        if address.is_abstract:
            sock.bind(path)
        else:
            _is_stale(path)  # raises the better error where no lock file can be created
            with _lock(path):
                file = _bind_path(sock, path, _DEFAULT_MODE if address.mode is None else address.mode, backlog)

    return sock, file


def _bind_path(sock: socket.socket, path: bytes, mode: int, backlog: int) -> SocketFile:
    if _is_stale(path):
        os.unlink(path)
    # os.path.abspath() would drop "link/..", which changes the directory. os.getcwdb() fails if the working
    # directory was removed, so it is not called for an absolute path.
    absolute = path if os.path.isabs(path) else os.path.join(os.getcwdb(), path)
    # Linux creates the file with the mode of the socket, less the umask: never wider than `mode`. Other systems
    # refuse fchmod(2) on a socket; there `_set_mode` sets the mode.
    with suppress(OSError):
        os.fchmod(sock.fileno(), mode)
    sock.bind(path)
    file = SocketFile(absolute, os.lstat(path))
    try:
        # Before listen(2): until then every connect(2) is refused, whatever the mode.
        _set_mode(file, mode)
        # Before the lock is released: a bound socket that does not listen looks stale.
        sock.listen(backlog)
    except BaseException:
        file.remove()
        raise

    return file


def _set_mode(file: SocketFile, mode: int) -> None:
    """Set the mode of the bound file, if the umask narrowed it or fchmod(2) refused the socket.

    In a directory with several writers, the path may name another file by now, such as a link to a private file.
    The file is therefore opened, compared with the bound file, and changed through its descriptor.
    """
    if stat.S_IMODE(os.lstat(file.path).st_mode) == mode:
        return
    try:
        if not hasattr(os, "O_PATH"):
            os.chmod(file.path, mode, follow_symlinks=os.chmod not in os.supports_follow_symlinks)
            return

        descriptor = os.open(file.path, os.O_PATH | os.O_NOFOLLOW)
        try:
            found = os.fstat(descriptor)
            if not os.path.samestat(found, file.status) or not stat.S_ISSOCK(found.st_mode) or found.st_nlink != 1:
                raise OSError(errno.EBUSY, "another program replaced the socket file")
            os.chmod(f"/proc/self/fd/{descriptor}", mode)  # fchmod(2) refuses O_PATH
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise OSError(exc.errno, f"the mode of the socket file cannot be set: {exc.strerror}") from exc


def _lock(path: bytes) -> ExitStack:
    """Take the lock that replacing a stale file at `path` needs; return a context manager that releases it.

    Without the lock, two servers find one stale file, and the slower server removes the socket of the faster one.

    The lock is an flock(2) on ``.NAME.lock`` beside the socket. It works between all processes of one kernel that
    see the directory; an abstract name would be per network namespace. The kernel releases the lock when the
    process ends, so a lock file of a killed server is locked again and then removed. flock(2) on the directory
    itself would let any user with read permission keep servers from starting. `_lock_mode` admits only users that
    can write to the directory; they can replace the socket anyway.

    In a sticky directory (/tmp) a user cannot remove a file of another user, be it a lock or a socket. Only servers
    of one user need the lock there. A lock file of another user, or a lock path that is not a regular file, is
    ignored, and the server starts without a lock.

    Raises EBUSY if another process holds the lock.
    """
    parent, name = os.path.split(path)
    directory = os.stat(parent or b".")
    lock = os.path.join(parent, b"." + name + b".lock")
    for _ in range(_LOCK_TRIES):
        try:
            # O_EXCL: the mode is set only on a new file, never on the target of a link.
            descriptor = os.open(lock, _LOCK_FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            try:
                descriptor = os.open(lock, _LOCK_FLAGS)
            except FileNotFoundError:
                continue  # the holder removed it
            except OSError:
                break  # a symbolic link, or the file of another user
        else:
            with suppress(OSError):
                os.fchmod(descriptor, _lock_mode(directory, os.fstat(descriptor)))

        with ExitStack() as held:
            held.callback(os.close, descriptor)
            if not _is_trusted(descriptor, directory):
                break
            if _flock(descriptor, lock):
                # Unlink before close(2) releases the lock: two processes could lock and remove an unlocked file.
                held.callback(_unlink, lock)
                return held.pop_all()

    if directory.st_mode & stat.S_ISVTX:
        return ExitStack()

    raise OSError(errno.EBUSY, f"{os.fsdecode(lock)} is in the way; remove it, unless another server is starting")


def _unlink(path: bytes) -> None:
    with suppress(OSError):
        os.unlink(path)


def _is_trusted(descriptor: int, directory: os.stat_result) -> bool:
    found = os.fstat(descriptor)
    is_sticky = directory.st_mode & stat.S_ISVTX
    return stat.S_ISREG(found.st_mode) and (not is_sticky or found.st_uid == os.geteuid())


def _lock_mode(directory: os.stat_result, lock: os.stat_result) -> int:
    """Return the mode that lets exactly the users with write access to `directory` open `lock`."""
    if directory.st_mode & stat.S_ISVTX:
        return 0o600

    other = 0o6 if directory.st_mode & stat.S_IWOTH else 0
    group = 0o6 if directory.st_mode & stat.S_IWGRP else 0
    return 0o600 | (group if lock.st_gid == directory.st_gid else other) << 3 | other


def _flock(descriptor: int, lock: bytes) -> bool:
    """Take an exclusive lock on an open lock file, and return whether the path `lock` still leads to this file.

    Raises EBUSY at once if another process holds the lock. After false, the caller closes the file and tries again.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise OSError(errno.EBUSY, "another server is about to listen there") from exc
    except OSError:
        pass  # this file system has no locks
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.lstat(lock))

    return False


def _is_stale(path: bytes) -> bool:
    """Return whether `path` is a socket without a server. Raise `OSError` if it is in use or not a socket."""
    with suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "it exists and is not a socket")

        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except BlockingIOError:  # its accept backlog is full
            pass
        raise OSError(errno.EADDRINUSE, "a server is listening there")

    return False
