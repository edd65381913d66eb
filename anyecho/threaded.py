"""A server in a thread of its own, for tests, scripts and notebooks that run another event loop, or none."""

from __future__ import annotations

__all__ = ("ServerFactory", "ThreadedServer", "threaded_server")

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from anyio import Event, move_on_after
from anyio.from_thread import BlockingPortal

from anyecho.address import Address, TCPAddress, UDPAddress, parse_address
from anyecho.backends import Backend, run
from anyecho.echo import echo
from anyecho.errors import UsageError, unwrap_single
from anyecho.faults.fault import Fault
from anyecho.handlers import Handler
from anyecho.net.threads import NoThreadError
from anyecho.net.tls.contexts import TLSServerOptions
from anyecho.net.tls.generated import GeneratedAuthority
from anyecho.portal import call_in, start_in
from anyecho.server.options import ServeOptions
from anyecho.server.recorder import ConnectionRecord, Recorder, holds
from anyecho.server.server import Server, open_server
from anyecho.server.stats import Stats

#: A free port. A fixed one would collide with parallel runs of a test-suite.
_ADDRESS = "tcp://127.0.0.1:0"
#: Default seconds that a wait may take.
_TIMEOUT = 5.0


@contextmanager
def threaded_server(
    *addresses: str | Address,
    options: ServeOptions | None = None,
    handler: Handler = echo,
    backend: Backend = "asyncio",
) -> Iterator[ThreadedServer]:
    """Run a server on `addresses` (by default a free port of 127.0.0.1) while the block runs.

    The server has an event loop of `backend` in a thread of its own, and accepts when the block begins. Leaving
    the block closes it as `open_server` does, and joins the thread. If the server has failed, its error is raised
    then; if the block raises too, its exception passes, with a note.

    Each connection has a task and a record (`ThreadedServer.connections`).

    Raises:
        AddressError: one of `addresses` is not an address.
        UsageError: an argument is invalid for `open_server`, `options.engine` is ``events``, or `backend` is
            unknown.
        BackendError: `backend` is not installed.
        CertificateError: a file of `options.tls` cannot be used, or no certificate can be generated.
        BindError: listening fails on an address.
        StartError: too few descriptors are free.
        OSError: a listener fails for good, or no thread can be started.
    """
    thread = _ServerThread(addresses or (_ADDRESS,), options, handler)
    with ThreadPoolExecutor(1, thread_name_prefix="anyecho-server") as executor:
        try:
            ended = executor.submit(partial(run, thread.main, backend=backend))
        except RuntimeError as exc:
            raise NoThreadError from exc
        try:
            yield thread.wait_ready(ended)
        except BaseException as exc:
            thread.stop(ended)
            error = ended.exception()
            if error is not None and error is not exc:
                exc.add_note(f"The server has failed too: {error!r}")
            raise
        else:
            thread.stop(ended)
            ended.result()


@dataclass(eq=False)
class _ServerThread:
    """What runs in the thread, and how it is begun and ended from another one."""

    addresses: Sequence[str | Address]
    options: ServeOptions | None
    handler: Handler
    _begun: Future[BlockingPortal] = field(init=False, default_factory=Future)
    _ready: Future[ThreadedServer] = field(init=False, default_factory=Future)
    _leave: Event = field(init=False)

    async def main(self) -> None:
        self._leave = Event()
        with unwrap_single():
            async with BlockingPortal() as portal:
                self._begun.set_result(portal)
                async with open_server(*self.addresses, options=self.options, handler=self.handler) as server:
                    # Before the first checkpoint, and so before the first connection is accepted.
                    server.set_faults(*server.options.faults)
                    threaded = ThreadedServer(server, server.record_connections(), portal)
                    self._ready.set_result(threaded)
                    try:
                        await self._leave.wait()
                    finally:
                        threaded._running = False
                # A call of another thread may still wait.
                await portal.stop(cancel_remaining=True)

    def wait_ready(self, ended: Future[None]) -> ThreadedServer:
        _wait_for_first(self._ready, ended)
        if not self._ready.done():
            ended.result()
        return self._ready.result()

    def stop(self, ended: Future[None]) -> None:
        """Let `main` end, and wait for it."""
        _wait_for_first(self._begun, ended)
        if self._begun.done():
            portal = self._begun.result()
            # It is not ready if Ctrl-C came while it was opening.
            end: Callable[[], Any] = self._leave.set if self._ready.done() else partial(portal.stop, True)
            with suppress(RuntimeError):  # it has ended
                start_in(portal, end)
        wait((ended,))


def _wait_for_first(*futures: Future[Any]) -> None:
    wait(futures, return_when=FIRST_COMPLETED)


class ThreadedServer:
    """A running server in a thread of its own, as `threaded_server` and the fixture ``echo_server`` yield it.

    All attributes may be read, and all methods called, in any thread but that of the server. The methods wait until
    the server has acted. In a test that runs an event loop, use those that begin with ``a``, which leave its loop
    free. After the block, `close`, `drain` and `abort` do nothing.

    * `addresses`: the bound addresses, one for each listener; `options`: those of the server;
    * `stats`: its counters; `seed`: the seed of its faults;
    * `connections`: a record of each connection, in the order of accept.
    """

    def __init__(self, server: Server, recorder: Recorder, portal: BlockingPortal) -> None:
        self.addresses: tuple[Address, ...] = server.addresses
        self.options: ServeOptions = server.options
        self.stats: Stats = server.stats
        self.seed: int = server.seed
        self.connections: Sequence[ConnectionRecord] = recorder.connections
        self._server = server
        self._recorder = recorder
        self._portal = portal
        self._running = True

    def __repr__(self) -> str:
        return f"<server on {', '.join(map(str, self.addresses))}>"

    @property
    def address(self) -> Address:
        """The first of `addresses`."""
        return self.addresses[0]

    @property
    def host(self) -> str:
        """The host of `address`.

        Raises:
            UsageError: it has none.
        """
        if not isinstance(self.address, TCPAddress | UDPAddress):
            raise UsageError(f"the server has no host: it listens on {self.address} (see server.addresses)")

        return self.address.host

    @property
    def port(self) -> int:
        """The port of all TCP and UDP addresses.

        Raises:
            UsageError: there is none, or more than one.
        """
        return self._server.port

    @property
    def cacert(self) -> Path | None:
        """The file of a generated CA, for clients to trust."""
        certificates = self._server.certificates
        return certificates.cacert if certificates else None

    def wait_for_connections(self, count: int, timeout: float = _TIMEOUT) -> None:
        """Wait until `count` connections have been accepted since the start.

        Raises:
            TimeoutError: there are fewer after `timeout` seconds.
        """
        if len(self.connections) < count:
            call_in(self._portal, self._wait_for_connections, count, timeout)

    async def await_for_connections(self, count: int, timeout: float = _TIMEOUT) -> None:
        """`wait_for_connections`, in any event loop.

        Raises:
            TimeoutError: there are fewer after `timeout` seconds.
        """
        if len(self.connections) < count:
            await self._portal.call_async(self._wait_for_connections, count, timeout)

    def wait_until(self, condition: Callable[[], object], timeout: float = _TIMEOUT) -> None:
        """Wait until `condition()` is true.

        It is called in the thread of the server, whenever a connection begins, moves bytes or ends. An
        `IndexError` is taken as false, so that it may name a connection that is not there yet.

        Raises:
            TimeoutError: it is false after `timeout` seconds.
        """
        if not holds(condition):
            call_in(self._portal, self._wait_until, condition, timeout, "the condition is false")

    async def await_until(self, condition: Callable[[], object], timeout: float = _TIMEOUT) -> None:
        """`wait_until`, in any event loop.

        Raises:
            TimeoutError: it is false after `timeout` seconds.
        """
        if not holds(condition):
            await self._portal.call_async(self._wait_until, condition, timeout, "the condition is false")

    def set_faults(self, /, *faults: Fault, **named: Fault) -> None:
        """Let these faults act in place of those before, on open connections too, as `Server.set_faults` does.

        Raises:
            UsageError: one of them has no effect here or is for datagrams, or a name is given twice.
        """
        if self._running:
            call_in(self._portal, partial(self._server.set_faults, *faults, **named))

    def close(self) -> None:
        """Stop accepting before this returns: later connections are refused. Open connections continue."""
        if self._running:
            call_in(self._portal, self._server.close)

    def abort(self) -> None:
        """Stop accepting, and close each connection without its pending echo."""
        if self._running:
            call_in(self._portal, self._server.abort)

    def drain(self, grace: float | None = None) -> None:
        """Stop accepting, echo for `grace` seconds (default: `graceful_timeout`), then close each connection.

        Returns once no connection is left.
        """
        if self._running:
            call_in(self._portal, self._server.drain, grace)

    async def adrain(self, grace: float | None = None) -> None:
        """`drain`, in any event loop."""
        if self._running:
            await self._portal.call_async(self._server.drain, grace)

    async def _wait_for_connections(self, count: int, timeout: float) -> None:
        await self._wait_until(lambda: len(self.connections) >= count, timeout, f"fewer than {count} connections")

    async def _wait_until(self, condition: Callable[[], object], timeout: float, otherwise: str) -> None:
        with move_on_after(timeout):
            await self._recorder.wait_until(condition)
            return

        raise TimeoutError(f"{otherwise} after {timeout:g} s: {[*self.connections]}")


class ServerFactory:
    """Starts servers for a test, as the fixture ``echo_server_factory`` does; `opened` closes them.

    A server over TLS without options of a certificate gets one from the CA that `authority` returns.
    """

    def __init__(self, opened: ExitStack, authority: Callable[[], GeneratedAuthority]) -> None:
        self._opened = opened
        self._authority = authority

    def __call__(
        self,
        *addresses: str | Address,
        options: ServeOptions | None = None,
        handler: Handler = echo,
        backend: Backend = "asyncio",
    ) -> ThreadedServer:
        """Start a server as `threaded_server` does, and return it. It ends with the test."""
        options = ServeOptions() if options is None else options
        wanted = [parse_address(address) for address in addresses]
        if any(address.tls for address in wanted) and options.tls == TLSServerOptions():
            own = TLSServerOptions(ssl_self_signed=True, authority=self._authority())
            options = replace(options, tls=own)
        return self._opened.enter_context(
            threaded_server(*wanted, options=options, handler=handler, backend=backend)
        )
