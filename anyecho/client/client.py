"""Connect to an echo server, and exchange verified payloads with it."""

from __future__ import annotations

__all__ = ("Client", "connect", "connect_checked")

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager

from anyio import BrokenResourceError, CancelScope, ClosedResourceError, ResourceGuard, create_task_group
from anyio.abc import AsyncResource, ByteStream

from anyecho.address import Address, TCPAddress, UDPAddress, parse_address
from anyecho.client.datagrams import DatagramExchange
from anyecho.client.exchange import Exchange
from anyecho.client.matcher import RecentDatagrams
from anyecho.client.options import ConnectOptions, check_options
from anyecho.client.source import Item, Source, check_source, to_bytes
from anyecho.clock import run_within
from anyecho.errors import ConnectError, unwrap_single
from anyecho.net.connect import ConnectStep, connect_stream
from anyecho.net.udp.stream import DatagramStream, connect_datagrams
from anyecho.units import format_duration, or_infinite
from anyecho.validation import check_kind

logger = logging.getLogger("anyecho.client")


async def connect(address: str | Address, *, options: ConnectOptions | None = None) -> Client:
    """Connect to the echo server at `address`. The caller closes the returned client.

    Over UDP nothing is sent: only an exchange shows whether a server is there. An error or a cancellation closes
    all sockets. A name look-up cannot be stopped: its thread, which opens no socket, ends later.

    Raises:
        AddressError: `address` is not an address.
        UsageError: `options` are not `ConnectOptions`; a protective option (TLS, a PROXY header) has no effect on
            `address`; or `address` is a descriptor.
        CertificateError: a file of `options.tls` cannot be used.
        ConnectError: no endpoint of `address` accepts within `timeout` and `deadline` seconds, or the PROXY header
            or the TLS handshake fails.
    """
    options = ConnectOptions() if options is None else options
    check_kind(options, ConnectOptions)
    address = parse_address(address)
    check_options(options, address)
    return await connect_checked(address, options)


async def connect_checked(
    address: Address, options: ConnectOptions, on_step: Callable[[ConnectStep], object] | None = None
) -> Client:
    """Like `connect`, without checking `options` against `address`.

    `on_step` is called after each step of connecting a stream.
    """
    logger.debug("connecting to %s", _describe(address))
    if isinstance(address, TCPAddress | UDPAddress) and address.port == 0:
        raise ConnectError(f"cannot connect to {address}: port 0 is any free port, and only for servers")

    limit = min(or_infinite(options.timeout), or_infinite(options.deadline))
    try:
        stream = await run_within(limit, _connect_stream, address, options, on_step)
    except TimeoutError as exc:
        raise ConnectError(f"cannot connect to {address}: no answer within {format_duration(limit)}") from exc

    return Client(stream, options, address=address)


async def _connect_stream(
    address: Address, options: ConnectOptions, on_step: Callable[[ConnectStep], object] | None
) -> ByteStream | DatagramStream:
    if isinstance(address, UDPAddress):
        return await connect_datagrams(address, family=options.family, options=options.socket)

    return await connect_stream(
        address,
        family=options.family,
        options=options.socket,
        tls=options.tls,
        proxy_header=options.proxy_header,
        on_step=on_step,
    )


class Client(AsyncResource):
    """One connection to an echo server, for one exchange at a time. It owns `stream`.

    Over UDP every item is a datagram, empty ones too, and an item without a reply within the timeout is lost.

    An exchange that fails or is cancelled makes the client unusable: bytes still in flight cannot be assigned to an
    exchange any more. The connection stays open until `aclose`, or the end of an ``async with`` block.
    """

    def __init__(
        self,
        stream: ByteStream | DatagramStream,
        options: ConnectOptions | None = None,
        *,
        address: Address | None = None,
    ) -> None:
        """`address` is shown in errors."""
        self.stream = stream
        #: None after the first echo: the server cannot refuse the handshake any more.
        self._unconfirmed_address = None if address is None else str(address)
        self._recent = RecentDatagrams()
        options = options or ConnectOptions()
        self._timeout, self._deadline = or_infinite(options.timeout), or_infinite(options.deadline)
        self._guard = ResourceGuard("exchanging on")
        self._broken = False
        self._closed = False

    async def exchange(self, payload: Item) -> bytes:
        """Send `payload` and return its echo, which is equal. A payload other than `bytes` is copied.

        Raises:
            EchoMismatch: a byte of the echo differs, or was never sent.
            EchoTruncated: the connection ended before all bytes were back (not over UDP).
            EchoStalled: no byte moved for `timeout` seconds (not over UDP), or `deadline` seconds are over.
            EchoLost: the datagram had no reply within `timeout` seconds.
            UsageError: `payload` is not a buffer (nothing is sent then), or is too large for a datagram.
            ConnectError: over TLS 1.3, the server refuses the client's certificate, or requires one; over UDP, it
                is unreachable.
            BrokenResourceError: an earlier exchange failed, was cancelled, or half-closed the connection.
            BusyResourceError: another exchange is running.
            ClosedResourceError: this side has closed the client.
        """
        payload = to_bytes(payload, "a payload")
        with self._exchange((payload,), total=len(payload)) as exchange:
            if not await exchange.attempt(payload, self._deadline):
                async with _echo_of(exchange, self._deadline) as echo:
                    async for _ in echo:
                        pass

        return payload

    @asynccontextmanager
    async def send(self, source: Source, *, deadline: float | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send every item of `source`, then half-close; yield the echo as an iterator of chunks.

        ::

            async with client.send([b"one", b"two"]) as echo:
                async for chunk in echo:
                    ...

        Memory is constant: sending pauses while 8 MiB are outstanding. `deadline`, in seconds, replaces that of the
        options. An item other than `bytes` is copied when it is taken. The caller closes `source`. Only chunks that
        were iterated over are verified: leaving the block early verifies nothing more. Errors of `source` pass
        unchanged.

        Raises:
            EchoMismatch: a byte of the echo differs, or was never sent.
            EchoTruncated: the connection ended before all bytes were back (not over UDP).
            EchoStalled: no byte moved for `timeout` seconds (not over UDP), or `deadline` seconds are over.
            EchoLost: a datagram had no reply within `timeout` seconds; raised after the last reply.
            UsageError: `source` is not an iterable of buffers (nothing is sent then), or gives an item that is no
                buffer or is too large for a datagram.
            ConnectError: over TLS 1.3, the server refuses the client's certificate, or requires one; over UDP, it
                is unreachable.
            BrokenResourceError: an earlier exchange failed, was cancelled, or half-closed the connection.
            BusyResourceError: another exchange is running.
            ClosedResourceError: this side has closed the client.
        """
        check_source(source)
        with self._exchange(source) as exchange:
            async with _echo_of(exchange, self._deadline if deadline is None else deadline) as echo:
                yield echo

    @contextmanager
    def _exchange(self, source: Source, *, total: int | None = None) -> Iterator[Exchange | DatagramExchange]:
        if self._closed:
            raise ClosedResourceError

        with self._guard:
            if self._broken:
                raise BrokenResourceError("an exchange on this client failed or half-closed it: connect anew")

            exchange: Exchange | DatagramExchange
            if isinstance(self.stream, DatagramStream):
                exchange = DatagramExchange(self.stream, source, self._timeout, self._recent)
            else:
                address = self._unconfirmed_address
                exchange = Exchange(self.stream, source, self._timeout, total=total, address=address)
            try:
                yield exchange
            finally:
                half_closed = total is None and isinstance(exchange, Exchange)
                self._broken = half_closed or not exchange.complete
                if isinstance(exchange, Exchange) and exchange.returned:
                    self._unconfirmed_address = None

    async def aclose(self) -> None:
        """Close the connection; over TLS this takes at most 2 s. Idempotent.

        A running exchange fails. The connection is closed even if the call is cancelled.
        """
        if not self._closed:
            logger.debug("closing")
            self._closed = True
        await self.stream.aclose()


def _describe(address: Address) -> str:
    if isinstance(address, TCPAddress):
        return f"{address.host or 'localhost'} port {address.port}"

    return str(address)


@asynccontextmanager
async def _echo_of(exchange: Exchange | DatagramExchange, deadline: float) -> AsyncIterator[AsyncIterator[bytes]]:
    """Start sending; yield the verified echo as an iterator. Raises the errors of its tasks and of `receive`."""
    with unwrap_single() as unchanged:
        async with create_task_group() as tasks:
            watching = CancelScope()
            tasks.start_soon(exchange.watch, watching, deadline)
            tasks.start_soon(exchange.send_source)
            with unchanged:
                async with aclosing(exchange.receive()) as echo:
                    yield echo
            watching.cancel()
            if not exchange.complete:
                tasks.cancel_scope.cancel()
