"""From an address to sockets that listen, and back to nothing when they close.

A host name may stand for several sockets on one port; a Unix path is claimed without stealing it from a live
server and removed only if it is still ours. What cannot be had is a `BindError`, and nothing stays half-bound.
"""

from __future__ import annotations

__all__ = ("Listener", "open_listeners")

import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from anyecho.address import Address, FDAddress, TCPAddress, UDPAddress, UnixAddress
from anyecho.errors import BindError
from anyecho.net.accepted import Preparation, preparation_for
from anyecho.net.bind import bind_hosts
from anyecho.net.inherit import inherit
from anyecho.net.sockets import SocketOptions, address_of, datagram_address_of

#: A socket file is for its owner unless the address says otherwise (``?mode=666``).
_DEFAULT_MODE = 0o600
_HINTS = {
    errno.EADDRINUSE: "it is in use already",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "permission denied",
}


@dataclass(eq=False)
class Listener:
    """A listening, non-blocking stream socket, or a bound datagram one, and its address (never port 0)."""

    sock: socket.socket
    address: Address
    #: What was asked for, of which `address` may be one of several.
    asked: Address
    #: (device, inode) of our socket file, and where it is, however the working directory changes.
    _file: tuple[tuple[int, int], str] | None = field(default=None, repr=False)
    #: What has to be done to each socket that it accepts.
    preparation: Preparation | None = field(init=False, default=None, repr=False)

    def close(self) -> None:
        """Stop listening; remove the socket file if it is still the one this listener made."""
        if self._file is not None:
            identity, path = self._file
            with suppress(OSError):
                if _identity(path) == identity:
                    os.unlink(path)

        self.sock.close()


async def open_listeners(addresses: Sequence[Address], *, backlog: int, options: SocketOptions) -> list[Listener]:
    """Listen on every one of `addresses`; the caller closes what comes back. Raises `BindError`."""
    with ExitStack() as opened:
        listeners: list[Listener] = []
        for address in addresses:
            with _bind_errors(address):
                for listener in await _open(address, backlog, options):
                    opened.callback(listener.close)
                    listeners.append(listener)

        _refuse_twice(listeners)
        for listener in listeners:
            with _bind_errors(listener.address):
                if listener.sock.type == socket.SOCK_STREAM:
                    listener.preparation = preparation_for(listener.sock, options)
                    listener.sock.listen(backlog)

        opened.pop_all()

    return listeners


async def _open(address: Address, backlog: int, options: SocketOptions) -> list[Listener]:
    if isinstance(address, UDPAddress):
        sockets = await bind_hosts(address, partial(_bind_one, options=options, kind=socket.SOCK_DGRAM))
        return [Listener(sock, datagram_address_of(sock), address) for sock in sockets]
    if isinstance(address, FDAddress):
        return [_inherit(address, options)]
    if isinstance(address, UnixAddress):
        return [_bind_unix(address, backlog, options)]

    sockets = await bind_hosts(address, partial(_bind_one, options=options))
    return [Listener(sock, _address_of(sock, address), address) for sock in sockets]


def _address_of(sock: socket.socket, asked: TCPAddress | FDAddress) -> Address:
    return address_of(sock.family, sock.getsockname(), tls=asked.tls)


def _bind_one(
    family: int, sockaddr: Any, *, options: SocketOptions, kind: int = socket.SOCK_STREAM
) -> socket.socket:
    sock = socket.socket(family, kind)
    try:
        _prepare(sock, options)
        sock.bind(sockaddr)
    except BaseException:
        sock.close()
        raise

    return sock


def _prepare(sock: socket.socket, options: SocketOptions) -> None:
    sock.setblocking(False)
    options.apply(sock)
    # Never for UDP: whoever asked for the same port next would take the datagrams, and nobody would be told.
    if sock.family != socket.AF_UNIX and sock.type == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


def _bind_unix(address: UnixAddress, backlog: int, options: SocketOptions) -> Listener:
    with ExitStack() as opened:
        sock = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        _prepare(sock, options)
        path = os.fsencode(address.path)
        if address.is_abstract:
            sock.bind(path)
            listener = Listener(sock, address, address)
        else:
            with _claim(path):
                _remove_stale(path)
                # The umask, not a chmod: there is no moment at which the file is open to more than it should be.
                umask = os.umask(0o777 & ~(_DEFAULT_MODE if address.mode is None else address.mode))
                try:
                    sock.bind(path)
                finally:
                    os.umask(umask)
                file = (_identity(path), os.path.abspath(address.path))
                listener = Listener(sock, address, address, file)
                # Before the claim ends: a socket that is bound and not listening looks stale to the next one.
                sock.listen(backlog)

        opened.pop_all()
        return listener


@contextmanager
def _claim(path: bytes) -> Iterator[None]:
    """Keep two servers from finding the same stale file at once, each then removing the other's new one.

    The claim is an abstract name: it goes with the process, leaves nothing behind, and waits for nobody.
    """
    directory, name = os.path.split(os.path.abspath(path))
    found = os.stat(directory)
    with socket.socket(socket.AF_UNIX) as claim:
        try:
            claim.bind(f"\0anyecho/{found.st_dev}/{found.st_ino}/".encode() + name[-64:])
        except FileNotFoundError:
            pass  # where there are no abstract names, this is a path in no directory
        except OSError as exc:
            raise OSError(errno.EBUSY, "another server is about to listen there") from exc
        yield


def _remove_stale(path: bytes) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "it exists and is not a socket")
    except FileNotFoundError:
        return

    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:  # its backlog is full: alive, and busy
            pass

    raise OSError(errno.EADDRINUSE, "a server is listening there")


def _identity(path: str | bytes) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _inherit(address: FDAddress, options: SocketOptions) -> Listener:
    if isinstance(address.fd, str):
        raise BindError(
            f"cannot listen on {address}: only `anyecho serve` knows names; write its number, like fd://3"
        )

    sock = inherit(address.fd, options)
    try:
        is_udp = sock.type == socket.SOCK_DGRAM
        if is_udp and (address.tls or address.proxy not in (None, "off")):
            raise BindError(
                f"cannot listen on {address}: datagrams have neither TLS nor a header of the PROXY protocol"
            )

        bound = datagram_address_of(sock) if is_udp else _address_of(sock, address)
        return Listener(sock, bound, address)
    except BaseException:
        sock.close()
        raise


def _refuse_twice(listeners: Sequence[Listener]) -> None:
    """Two of one socket would take each other's connections; and a datagram's bucket would be two."""
    seen: set[int] = set()
    for listener in listeners:
        if isinstance(listener.asked, FDAddress):
            socket_id = os.fstat(listener.sock.fileno()).st_ino
            if socket_id in seen:
                raise BindError(f"cannot listen on {listener.asked}: another descriptor here is the same socket")
            if socket_id:  # some systems number no sockets
                seen.add(socket_id)


@contextmanager
def _bind_errors(address: Address) -> Iterator[None]:
    try:
        yield
    except socket.gaierror as exc:
        raise BindError(f"cannot listen on {address}: no such host ({exc.strerror})") from exc
    except (OSError, UnicodeError) as exc:
        strerror: object = getattr(exc, "strerror", None) or exc
        reason = _HINTS.get(getattr(exc, "errno", None) or 0, strerror)
        raise BindError(f"cannot listen on {address}: {reason}") from exc
