"""A listener for HTTP beside the echo: accepts a few connections, and checks which requests may pass.

It must not know what the requests are for. Its trouble never reaches the echo: it has a connection limit of its
own, and a listener that fails is logged.
"""

from __future__ import annotations

__all__ = ("HTTPListener", "RequestChecks", "open_http", "parse_http_address", "url_of")

import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from anyio import CancelScope, Event, create_task_group, current_time, move_on_after
from anyio.abc import SocketAttribute, TaskGroup

from anyecho.address import Address, TCPAddress, UnixAddress, parse_address
from anyecho.errors import UsageError, unwrap_single
from anyecho.net.accept import Acceptor
from anyecho.net.http import HTTPConnection, HTTPHandler, HTTPLimits, Request, Response
from anyecho.net.listen import Listener, open_listeners
from anyecho.net.poller import Fallback, Poller, open_poller
from anyecho.net.readiness import is_ready
from anyecho.net.sockets import Socket, SocketOptions
from anyecho.net.stream import PolledStream

logger = logging.getLogger("anyecho.server")

#: Connections, and seconds for which one that is idle is kept for certain. More wait in the backlog: a health check
#: behind a hundred idle ones waits three times as long. A request follows the handshake at once, from any distance.
_MAX_CONNECTIONS = 32
_MIN_IDLE = 0.05
_RETRY_DELAY = 0.1
_BACKLOG = 128
_HOST_FIELD = re.compile(r"(?:\[(?P<address>[^]]*)\]|(?P<name>[^:[]*))(?::[0-9]*)?")


@dataclass(frozen=True, kw_only=True)
class RequestChecks:
    """Which requests pass: those that no page in a browser can cause.

    A page of any site can send requests to a port of this machine: by its address, and under a name of its own that
    resolves to it (DNS rebinding), when it can read the answers too.

    * `browsers`: whether a browser may send requests, which a person then can read;
    * `any_host`: paths that may be asked for under any host name.
    """

    browsers: bool = False
    any_host: frozenset[str] = frozenset()

    def refusal(self, request: Request) -> Response | None:
        """Return the answer to a request that does not pass."""
        if not self.browsers and request.headers.get("user-agent", "").startswith("Mozilla/"):
            return Response(status=403, body=b"User agent not allowed\n")  # toxiproxy's words

        host = request.headers.get("host", "")
        if request.path in self.any_host or not _may_be_rebound(host):
            return None

        text = f"the host {host!r} is not allowed: use an address, localhost or a name without a dot\n"
        return Response(status=403, body=text.encode())


def parse_http_address(text: str | Address, option: str) -> Address:
    """Parse the address of a listener for HTTP; a port alone is one of localhost.

    Raises `AddressError`, or `UsageError` of `option`.
    """
    if isinstance(text, str) and text.isascii() and text.isdigit():
        text = f"localhost:{text}"
    address = parse_address(text)
    if not isinstance(address, TCPAddress | UnixAddress) or address.tls or address.proxy is not None:
        raise UsageError(f"{option} is plain HTTP: give HOST:PORT or unix:/path, not {address}", options=(option,))

    return address


@asynccontextmanager
async def open_http(
    address: Address,
    handle: HTTPHandler,
    *,
    purpose: str,
    checks: RequestChecks | None = None,
    limits: HTTPLimits | None = None,
) -> AsyncIterator[HTTPListener]:
    """Answer the requests on `address` inside the block. `purpose` names the listener in the log.

    Leaving the block closes all connections; exceptions pass unchanged.

    Raises `BindError`, and `StartError` if no descriptor is left.
    """
    listeners = await open_listeners([address], backlog=_BACKLOG, options=SocketOptions())
    with ExitStack() as opened, unwrap_single() as unchanged:
        for listener in listeners:
            opened.callback(listener.close)
        _log_start(purpose, listeners)
        async with open_poller() as poller, create_task_group() as tasks:
            http = HTTPListener(listeners, handle, poller, tasks, purpose, checks or RequestChecks(), limits)
            http.start()
            try:
                with unchanged:
                    yield http
            finally:
                http.stop()
                tasks.cancel_scope.cancel()


class HTTPListener:
    """A listener for HTTP, as `open_http` yields it.

    If all its connections are taken, the one that has been idle for longest is closed for the next one.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        handle: HTTPHandler,
        poller: Poller | Fallback,
        tasks: TaskGroup,
        purpose: str,
        checks: RequestChecks,
        limits: HTTPLimits | None,
    ) -> None:
        #: The bound addresses, one for each socket.
        self.addresses = tuple(listener.address for listener in listeners)
        self._listeners = listeners
        self._handle = handle
        self._poller = poller
        self._tasks = tasks
        self._purpose = purpose
        self._checks = checks
        self._limits = limits or HTTPLimits()
        self._slots = _Slots()
        self._acceptors = [
            Acceptor(
                sock=listener.sock,
                limit=self._slots,
                hand_over=self._admit if isinstance(listener.address, UnixAddress) else self._admit_checked,
                errors=Counter(),
                preparation=listener.preparation,
                make_room=self._slots.close_idle,
            )
            for listener in listeners
        ]

    def start(self) -> None:
        for acceptor in self._acceptors:
            self._tasks.start_soon(self._accept, acceptor)

    def stop(self) -> None:
        """Stop accepting before this returns."""
        for acceptor, listener in zip(self._acceptors, self._listeners, strict=True):
            acceptor.stop()
            self._poller.unregister(listener.sock)
            listener.stop()

    async def _accept(self, acceptor: Acceptor) -> None:
        try:
            await acceptor.run(self._poller)
        except OSError as exc:
            logger.error("the listener of %s has failed: %s", self._purpose, exc.strerror)

    def _admit_checked(self, sock: Socket, sockaddr: Any) -> None:
        self._start(sock, self._check_and_handle)

    def _admit(self, sock: Socket, sockaddr: Any) -> None:
        # No page reaches a Unix socket, and its requests may have any host.
        self._start(sock, self._handle)

    def _start(self, sock: Socket, handle: HTTPHandler) -> None:
        stream = PolledStream(sock, self._poller.register(sock))
        slot = _Slot(HTTPConnection(stream, handle, self._limits))
        self._slots.take(slot)
        self._tasks.start_soon(self._run, slot)

    async def _run(self, slot: _Slot) -> None:
        try:
            with slot.scope:
                await slot.connection.run()
        except* Exception as group:
            logger.error("a connection of %s failed", self._purpose, exc_info=group)
        finally:
            self._slots.release(slot)

    async def _check_and_handle(self, request: Request) -> Response:
        return self._checks.refusal(request) or await self._handle(request)


@dataclass(eq=False)
class _Slot:
    """A connection, and what ends it."""

    connection: HTTPConnection
    scope: CancelScope = field(default_factory=CancelScope)


class _Slots:
    """The connections of a listener, as the limit of its acceptors."""

    def __init__(self) -> None:
        #: In the order of accept, which decides between equal times. The values say nothing.
        self._held: dict[_Slot, None] = {}
        self._freed = Event()

    def may_accept(self) -> bool:
        return len(self._held) < _MAX_CONNECTIONS or self._longest_idle() is not None

    async def wait_may_accept(self) -> None:
        while not self.may_accept():
            with move_on_after(_RETRY_DELAY):
                await self._freed.wait()

    def take(self, slot: _Slot) -> None:
        if len(self._held) >= _MAX_CONNECTIONS and (idle := self._longest_idle()) is not None:
            del self._held[idle]
            idle.scope.cancel()
        self._held[slot] = None

    def close_idle(self) -> None:
        """Close all connections that may be closed for another one."""
        while (idle := self._longest_idle()) is not None:
            del self._held[idle]
            idle.scope.cancel()

    def release(self, slot: _Slot) -> None:
        self._held.pop(slot, None)
        self._freed.set()
        self._freed = Event()

    def _longest_idle(self) -> _Slot | None:
        """Return the connection to close for another one; None if each answers a request, or is new."""
        latest = current_time() - _MIN_IDLE
        idle = {slot: since for slot in self._held if (since := slot.connection.idle_since) is not None}
        for slot in sorted(idle, key=lambda slot: idle[slot]):
            # After a busy moment of this process or machine, a request has arrived that is not read yet.
            if idle[slot] <= latest and not is_ready(slot.connection.stream.extra(SocketAttribute.raw_socket)):
                return slot

        return None


def _may_be_rebound(host: str) -> bool:
    """Whether the name in the Host field may be one that its owner lets resolve to this machine."""
    parts = _HOST_FIELD.fullmatch(host)
    if parts is None:
        return True
    name = (parts["name"] or "").lower()
    try:
        ip_address(parts["address"] or name)
    except ValueError:
        # Names without a dot come from hosts files, Docker and Kubernetes, not from the public DNS.
        return "." in name.removesuffix(".") and not name.removesuffix(".").endswith(".localhost")

    return False


def _log_start(purpose: str, listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        logger.info("%s on %s", purpose, url_of(listener.address))
        if isinstance(listener.address, TCPAddress) and not _is_loopback(listener.address.host):
            text = "%s is open to the network on %s: it has no authentication"
            logger.warning(text, purpose, url_of(listener.address))


def url_of(address: Address) -> str:
    """Return the URL of a listener for HTTP, or its address if it is a Unix socket."""
    return f"http://{str(address).removeprefix('tcp://')}" if isinstance(address, TCPAddress) else str(address)


def _is_loopback(host: str) -> bool:
    return ip_address(host.partition("%")[0]).is_loopback
