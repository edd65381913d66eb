"""The lifetime of a server: listen, serve, close, drain, abort.

It sets the order in which listeners, connections and the poller are closed. The echo itself is up to the engines.
"""

from __future__ import annotations

__all__ = ("DEFAULT_ADDRESS", "Server", "open_server", "serve")

import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from threading import get_ident

from anyio import TASK_STATUS_IGNORED, create_task_group
from anyio.abc import TaskGroup, TaskStatus

from anyecho.address import Address, TCPAddress, UDPAddress
from anyecho.clock import run_within
from anyecho.echo import echo
from anyecho.errors import UsageError, unwrap_single
from anyecho.faults.fault import Fault
from anyecho.faults.plan import named
from anyecho.handlers import Handler
from anyecho.net.poller import open_poller
from anyecho.net.tls.contexts import Certificates
from anyecho.server.admission import Admission
from anyecho.server.listening import Listening
from anyecho.server.monitor import Monitor
from anyecho.server.opening import open_sockets
from anyecho.server.options import ServeOptions
from anyecho.server.reaper import Reaper
from anyecho.server.reasons import CloseReason
from anyecho.server.recorder import Recorder
from anyecho.server.stats import Peer, Stats
from anyecho.units import or_infinite
from anyecho.validation import check_kind

logger = logging.getLogger("anyecho.server")

#: The address of the original example.
DEFAULT_ADDRESS = "tcp://localhost:10000"


async def serve(
    *addresses: str | Address,
    options: ServeOptions | None = None,
    handler: Handler = echo,
    task_status: TaskStatus[tuple[Address, ...]] = TASK_STATUS_IGNORED,
) -> None:
    """Echo on `addresses` (by default ``tcp://localhost:10000``), or run another `handler`, until cancelled.

    `task_status` gets the bound addresses once they accept connections; port 0 is replaced by the actual port.
    Side effects, ownership and the end by a cancellation are those of `open_server`.

    Raises:
        AddressError: one of `addresses` is not an address.
        UsageError: `options` are not `ServeOptions`; lack what an address needs (a certificate, trusted proxies);
            or protect (TLS, trusted proxies) and have no effect on any address. `handler` is no coroutine
            function, or forwards to one of the addresses; or an address is for datagrams, or `options.engine` is
            ``events``, and it is not the echo.
        CertificateError: a file of `options.tls` cannot be used, or no certificate can be generated.
        BindError: listening fails on an address.
        StartError: no descriptor is left for epoll; or `options.engine` is ``events`` on a system without epoll.
        OSError: a listener fails for good; every connection is closed.
    """
    async with open_server(*addresses, options=options, handler=handler) as server:
        task_status.started(server.addresses)
        await server.wait_closed()


@asynccontextmanager
async def open_server(
    *addresses: str | Address, options: ServeOptions | None = None, handler: Handler = echo
) -> AsyncIterator[Server]:
    """Run a server inside the block. Leaving the block calls `drain(0)` and waits until the server is closed.

    If an exception or a cancellation leaves the block, the connections are counted as ``cancelled``. In each case
    they get a lingering close of at most `linger` seconds, and exceptions pass unchanged. No socket stays open. The
    task that enters the block must leave it.

    `handler` is called with the stream of each connection; when it returns, the connection gets a lingering close.
    It may leave the stream open. If it raises an exception, this connection ends, and its traceback is logged.
    Each connection of a handler has a task. The write timeout applies while a `send` of the handler waits.

    The server owns its listeners and connections, also passed sockets (``fd://``), which become non-blocking. It
    makes and removes the files of Unix sockets and of a generated CA. It changes neither signals nor a limit of
    the process: the soft limit of RLIMIT_NOFILE, less 64, bounds `max_connections`.

    Raises:
        AddressError: one of `addresses` is not an address.
        UsageError: `options` are not `ServeOptions`; lack what an address needs (a certificate, trusted proxies);
            or protect (TLS, trusted proxies) and have no effect on any address. `handler` is no coroutine
            function, or forwards to one of the addresses; or an address is for datagrams, or `options.engine` is
            ``events``, and it is not the echo.
        CertificateError: a file of `options.tls` cannot be used, or no certificate can be generated.
        BindError: listening fails on an address.
        StartError: no descriptor is left for epoll; or `options.engine` is ``events`` on a system without epoll.
        OSError: a listener fails for good; the block is cancelled and every connection closed.
    """
    options = ServeOptions() if options is None else options
    check_kind(options, ServeOptions)
    with ExitStack() as opened, unwrap_single() as unchanged:
        listeners, certificates = await open_sockets(addresses or (DEFAULT_ADDRESS,), options, handler, opened)
        async with open_poller() as poller, create_task_group() as tasks:
            admission = Admission(options, poller, tasks, handler)
            server = Server(admission, Listening(listeners, admission, poller, certificates), tasks)
            opened.callback(setattr, server, "_exited", True)
            try:
                with unchanged:
                    yield server
                    server.close()
                    server._close_all(CloseReason.DRAINED)
            finally:
                server._listening.stop()
                server._close_all(CloseReason.CANCELLED)
                tasks.cancel_scope.cancel()

    logger.info("closing server")


class Server:
    """A running server, as `open_server` yields it.

    `close`, `drain`, `abort` and `wait_closed` may be called repeatedly, in any order, and after the block, where
    they do nothing.

    * `addresses`: the bound addresses, one for each listener; `options`: those of `open_server`;
    * `stats`: its counters; `seed`: the seed of its faults, also a new one;
    * `certificates`: the TLS certificates, which can be reloaded, and the file of a generated CA; None without an
      address over TLS.
    """

    def __init__(self, admission: Admission, listening: Listening, tasks: TaskGroup) -> None:
        self.addresses: tuple[Address, ...] = listening.addresses
        self.options: ServeOptions = admission.options
        self.certificates: Certificates | None = listening.certificates
        self.stats: Stats = admission.stats
        self.seed: int = listening.seed
        self._admission = admission
        self._connections = admission.connections
        self._listening = listening
        self._tasks = tasks
        self._monitor: Monitor | None = None
        self._thread = get_ident()
        #: Whether the block has been left. Then the methods do nothing, in any thread.
        self._exited = False
        tasks.start_soon(listening.run)
        for sweep in (Reaper(self._connections, self.options), *admission.timeouts.values()):
            tasks.start_soon(sweep.run)

    @property
    def address(self) -> Address:
        """The first of `addresses`."""
        return self.addresses[0]

    @property
    def port(self) -> int:
        """The port of all TCP and UDP addresses.

        Raises:
            UsageError: there is none, or more than one.
        """
        ports = {each.port for each in self.addresses if isinstance(each, TCPAddress | UDPAddress)}
        if len(ports) != 1:
            found = "more than one port" if ports else "no port"
            listed = ", ".join(map(str, self.addresses))
            raise UsageError(f"the server has {found}: it listens on {listed} (see server.addresses)")

        return ports.pop()

    def close(self) -> None:
        """Stop accepting before this returns: later connections are refused. Open connections continue.

        Connections in the accept backlog are accepted first, because the kernel has completed them; those over
        `max_connections` are reset. Datagrams that have arrived are answered.

        Raises:
            RuntimeError: called in another thread than that of the event loop; nothing is changed.
        """
        self._check_thread("close")
        self._listening.accept_backlog()
        self._listening.stop()

    async def drain(self, grace: float | None = None) -> None:
        """Stop accepting, echo for `grace` seconds (default: `graceful_timeout`), then close each connection with a
        lingering close of at most `linger` seconds.

        Returns once no connection is left, at the latest after grace and linger. If it is cancelled, the server
        accepts no more, and open connections continue. An infinite `grace` is no limit.

        Raises:
            RuntimeError: called in another thread than that of the event loop; nothing is changed.
        """
        self._check_thread("drain")
        if self._exited:
            return

        self.close()
        seconds = or_infinite(self.options.graceful_timeout) if grace is None else grace
        if seconds > 0:
            with suppress(TimeoutError):
                await run_within(seconds, self._admission.wait_empty)
        self._close_all(CloseReason.DRAINED)
        await self._admission.wait_empty()

    def abort(self) -> None:
        """Stop accepting, reset the accept backlog, and close each connection without its pending echo. A running
        `drain` returns.

        Raises:
            RuntimeError: called in another thread than that of the event loop; nothing is changed.
        """
        self._check_thread("abort")
        self._listening.stop()
        for connection in list(self._connections):
            connection.abort()

    async def wait_closed(self) -> None:
        """Wait until the server accepts no more and no connection is left. Does not close anything itself.

        Raises:
            RuntimeError: called in another thread than that of the event loop.
        """
        self._check_thread("wait_closed")
        if not self._exited:
            await self._listening.closed.wait()
            await self._admission.wait_empty()

    def _check_thread(self, method: str) -> None:
        if get_ident() != self._thread and not self._exited:
            raise RuntimeError(
                f"server.{method}() was called in another thread than its event loop's: "
                f"use anyio.from_thread.run{'_sync' if method in ('close', 'abort') else ''}(server.{method})"
            )

    def _close_all(self, reason: CloseReason) -> None:
        for connection in list(self._connections):
            connection.request_close(reason)

    def set_faults(self, /, *faults: Fault, **named_faults: Fault) -> None:
        """Let these faults act in place of those before, also on open connections accepted since the first call.

        One without a name is called ``latency_downstream``, by kind and direction. Later connections have a task.

        Raises:
            UsageError: one has no effect here or is for datagrams, two have one name, or `engine` is ``events``.
        """
        self._listening.set_faults(named(faults, named_faults))

    def record_connections(self) -> Recorder:
        """Keep a record of each connection accepted from now on, for a test. Each then has a task.

        Raises:
            UsageError: `options.engine` is ``events``.
        """
        return self._admission.record()

    def monitor(self) -> Monitor:
        """Measure durations and the lag of the event loop from now on; return what reads the counters."""
        self._monitor = self._monitor or Monitor(self._admission, self._listening, self._tasks)
        return self._monitor

    def peers(self) -> list[Peer]:
        """Return all connected peers, at most `max_connections`, without those in a handshake."""
        return [peer for each in self._connections if (peer := each.peer()) is not None]
