"""Open the listeners of a server: bind each address, or take over an inherited descriptor, and listen.

A host name may resolve to several sockets on one port. If an address cannot be bound, `open_listeners` closes the
sockets bound before it and raises `BindError`.
"""

from __future__ import annotations

__all__ = ("CARRIERS", "Listener", "open_beside", "open_listeners")

import errno
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from anyecho.address import Address, FDAddress, TCPAddress, UDPAddress, UnixAddress
from anyecho.errors import BindError
from anyecho.net.accepted import Preparation, preparation_for
from anyecho.net.bind import bind_hosts
from anyecho.net.inherit import inherit
from anyecho.net.names import address_of, unmapped
from anyecho.net.sockets import SocketOptions, closed_on_error
from anyecho.net.syn_filter import drop_syns
from anyecho.net.unix import SocketFile, bind_unix

_HINTS = {
    errno.EADDRINUSE: "it is in use already",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "permission denied",
}


@dataclass(eq=False)
class Listener:
    """A listening stream socket or a bound datagram socket, non-blocking, and its address (never port 0)."""

    sock: socket.socket
    address: Address
    #: The address that the caller requested; a host name may have several listeners.
    requested: Address
    #: The socket file, if this process bound the socket to a path.
    file: SocketFile | None = None
    #: The set-up of each accepted socket.
    preparation: Preparation | None = field(init=False, default=None, repr=False)

    def admit_no_more(self) -> None:
        """Let no new connection into the accept backlog, which can then be accepted to its end.

        Without effect on a passed socket, on which another process may listen too, on an abstract Unix socket, and
        where the kernel refuses the filter.
        """
        if isinstance(self.requested, FDAddress):
            return

        if self.sock.family != socket.AF_UNIX:
            drop_syns(self.sock)
        self._remove_file()

    def stop(self) -> None:
        """Stop listening at once; remove the socket file if it is still the file that this process bound.

        The descriptor number refers to /dev/null until `close`. A task may still wait for this number, and on
        asyncio it would receive the events of the next socket that gets the number.
        """
        self._remove_file()
        try:
            with open(os.devnull, "rb") as placeholder:
                os.dup2(placeholder.fileno(), self.sock.fileno(), inheritable=False)
        except OSError:  # closed already, or out of descriptors
            self.sock.close()

    def close(self) -> None:
        """Stop listening and close the descriptor. Call it when no task waits for the descriptor any more."""
        self.stop()
        self.sock.close()

    def _remove_file(self) -> None:
        if self.file is not None:
            self.file.remove()
            self.file = None  # remove it only once: the file of a successor may have the same inode


async def open_listeners(addresses: Sequence[Address], *, backlog: int, options: SocketOptions) -> list[Listener]:
    """Listen on all `addresses`; the caller closes the listeners. Raises `BindError`, and then closes all."""
    with ExitStack() as opened:
        listeners: list[Listener] = []
        for address in addresses:
            with _bind_errors(address):
                for listener in await CARRIERS[type(address)](address, backlog, options):
                    opened.callback(listener.close)
                    listeners.append(listener)

        _reject_duplicates(listeners)
        for listener in listeners:
            with _bind_errors(listener.address):
                if listener.sock.type == socket.SOCK_STREAM:
                    passed = isinstance(listener.requested, FDAddress)
                    listener.preparation = preparation_for(listener.sock, options, passed=passed)
                    listener.sock.listen(backlog)

        opened.pop_all()

    return listeners


def open_beside(listener: Listener, *, backlog: int, options: SocketOptions) -> Listener:
    """Return a listener on the address of `listener` for another process, among which the kernel divides peers.

    Both have SO_REUSEPORT afterwards. It is set after bind(2) of the first, so that another server on the address
    was an error. For a Unix or inherited socket, `listener` itself is returned. Raises `BindError`.
    """
    sock, requested = listener.sock, listener.requested
    if isinstance(requested, UnixAddress | FDAddress):
        return listener

    with _bind_errors(listener.address):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with closed_on_error(socket.socket(sock.family, sock.type)) as beside:
            _prepare(beside, options)
            beside.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            beside.bind(sock.getsockname())
            if sock.type == socket.SOCK_STREAM:
                beside.listen(backlog)

    return Listener(beside, listener.address, requested)


async def _open_hosts(address: TCPAddress | UDPAddress, backlog: int, options: SocketOptions) -> list[Listener]:
    kind = socket.SOCK_DGRAM if isinstance(address, UDPAddress) else socket.SOCK_STREAM
    sockets = await bind_hosts(address, partial(_bind_socket, options=options, kind=kind))
    return [Listener(sock, address_of(sock, tls=address.tls), address) for sock in sockets]


async def _open_unix(address: UnixAddress, backlog: int, options: SocketOptions) -> list[Listener]:
    sock, file = bind_unix(address, backlog=backlog, options=options)
    return [Listener(sock, address, address, file)]


def _bind_socket(family: int, sockaddr: Any, *, options: SocketOptions, kind: socket.SocketKind) -> socket.socket:
    with closed_on_error(socket.socket(family, kind)) as sock:
        _prepare(sock, options)
        sock.bind(sockaddr)

    return sock


def _prepare(sock: socket.socket, options: SocketOptions) -> None:
    sock.setblocking(False)
    options.apply(sock)
    # Not for UDP: a second socket could bind the same port without an error and would receive the datagrams.
    if sock.type == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


async def _open_inherited(address: FDAddress, backlog: int, options: SocketOptions) -> list[Listener]:
    if isinstance(address.fd, str):
        raise BindError(
            f"cannot listen on {address}: descriptor names work only in `anyecho serve`; write a number, like fd://3"
        )

    with closed_on_error(inherit(address.fd, options)) as sock:
        if sock.type == socket.SOCK_DGRAM and (address.tls or address.proxy not in (None, "off")):
            raise BindError(
                f"cannot listen on {address}: datagrams have neither TLS nor a header of the PROXY protocol"
            )
        bound = address_of(sock, tls=address.tls)

    return [Listener(sock, bound, address)]


#: How to open the listeners of each type of address: sockets that are bound, non-blocking, and have the options.
#: They need not listen yet. A carrier adds its type.
CARRIERS: dict[type[Address], Callable[[Any, int, SocketOptions], Awaitable[list[Listener]]]] = {
    TCPAddress: _open_hosts,
    UDPAddress: _open_hosts,
    UnixAddress: _open_unix,
    FDAddress: _open_inherited,
}


def _reject_duplicates(listeners: Sequence[Listener]) -> None:
    """Raise `BindError` if two inherited descriptors are the same socket.

    Two listeners of one socket would compete for connections, and a UDP source would have two token buckets.
    """
    inodes: set[int] = set()
    for listener in listeners:
        if isinstance(listener.requested, FDAddress):
            inode = os.fstat(listener.sock.fileno()).st_ino
            if inode and inode in inodes:  # some systems have no inode numbers for sockets
                raise BindError(
                    f"cannot listen on {listener.requested}: another descriptor here is the same socket"
                )
            inodes.add(inode)


@contextmanager
def _bind_errors(address: Address) -> Iterator[None]:
    try:
        yield
    except socket.gaierror as exc:
        raise BindError(f"cannot listen on {address}: no such host ({exc.strerror})") from exc
    except (OSError, UnicodeError) as exc:
        strerror: object = getattr(exc, "strerror", None) or exc
        reason = _HINTS.get(getattr(exc, "errno", None) or 0, strerror)
        raise BindError(f"cannot listen on {address}: {reason}{_failed_host(address, exc)}") from exc


def _failed_host(address: Address, failure: Exception) -> str:
    """Return the host of the endpoint that failed, as `` (host)``, if it is not the host in `address`."""
    host: object = getattr(failure, "filename", None)
    if not isinstance(address, (TCPAddress, UDPAddress)) or host in (None, unmapped(address.host)):
        return ""

    return f" ({host})"
