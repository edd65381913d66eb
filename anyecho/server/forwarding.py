"""A handler that forwards each connection to another server, as a TCP proxy does.

It must not know what the two say to each other, or which faults act between them.
"""

from __future__ import annotations

__all__ = ("forward",)

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from anyio import BrokenResourceError, create_task_group
from anyio.abc import ByteStream

from anyecho.address import Address, FDAddress, StreamAddress, TCPAddress, UDPAddress, parse_address
from anyecho.clock import run_within
from anyecho.errors import ConnectError, StartError, UsageError
from anyecho.faults.fault import ConnectionEnded
from anyecho.handlers import Handler
from anyecho.net.abrupt import reset
from anyecho.net.connect import connect_stream
from anyecho.net.sockets import SocketOptions
from anyecho.net.tls.connect import client_session
from anyecho.net.tls.contexts import TLSClientOptions
from anyecho.server.reasons import UpstreamError
from anyecho.streams import Passthrough
from anyecho.throttle import ThrottledLog
from anyecho.units import Seconds, format_duration, or_infinite
from anyecho.validation import check_kind

logger = logging.getLogger("anyecho.server")


def forward(
    address: str | Address, *, timeout: Seconds | None = 10.0, tls: TLSClientOptions | None = None
) -> Handler:
    """Return a handler that forwards each connection to the server at `address`, the upstream, like a TCP proxy.

    It connects when the peer has connected, within `timeout` seconds, and copies bytes in both directions. A
    half-close is passed on as a half-close, a reset as a reset. What one side does not read, the other side cannot
    send (back-pressure). If the upstream refuses or is lost, the peer's connection ends with the close reason
    ``upstream``; the first such error in 10 s is logged.

    Raises:
        AddressError: `address` is not an address.
        UsageError: `address` is for datagrams, is a descriptor, or has port 0 or ``?proxy=``; `timeout` is not more
            than 0; or `tls` are not `TLSClientOptions`.
        CertificateError: a file of `tls` cannot be used.
    """
    tls = TLSClientOptions() if tls is None else tls
    check_kind(tls, TLSClientOptions)
    if not or_infinite(timeout) > 0:
        raise UsageError(f"timeout must be more than 0 seconds, not {timeout}", options=("timeout",))
    upstream = parse_address(address)
    if isinstance(upstream, UDPAddress | FDAddress) or upstream.proxy is not None:
        raise UsageError(f"cannot forward to {upstream}: give a TCP or Unix address without ?proxy=")
    if isinstance(upstream, TCPAddress) and upstream.port == 0:
        raise UsageError(f"cannot forward to {upstream}: port 0 is any free port, and only for servers")
    if upstream.tls:
        with suppress(ConnectError):  # of its host: for each connection
            client_session(upstream, tls)

    return _Forwarding(upstream, or_infinite(timeout), tls)


@dataclass(eq=False)
class _Forwarding:
    #: Its name is known to `check_upstream`.
    forwards_to: StreamAddress
    timeout: float
    tls: TLSClientOptions
    _failures: ThrottledLog = field(init=False, default_factory=lambda: ThrottledLog(logger))

    async def __call__(self, peer: ByteStream) -> None:
        async with _Upstream(await self._connect()) as upstream:
            try:
                async with create_task_group() as tasks:
                    tasks.start_soon(_upload, peer, upstream)
                    await _copy(upstream, peer)
            except* UpstreamError:
                await reset(peer)
                raise
            except* ConnectionEnded:  # by a fault between the peer and this side: the upstream gets EOF
                raise
            except* BrokenResourceError:
                await reset(upstream)
                raise

    async def _connect(self) -> ByteStream:
        try:
            return await run_within(self.timeout, self._connect_stream)
        except TimeoutError as exc:
            text = f"cannot connect to {self.forwards_to}: no answer within {format_duration(self.timeout)}"
            self._failures.warn("%s", text)
            raise UpstreamError(text) from exc
        except StartError as exc:
            self._failures.warn("%s", exc)
            raise UpstreamError(str(exc)) from exc

    async def _connect_stream(self) -> ByteStream:
        return await connect_stream(self.forwards_to, options=SocketOptions(), tls=self.tls)


async def _upload(peer: ByteStream, upstream: ByteStream) -> None:
    # The other direction meets the error too, after the bytes that have arrived before it.
    with suppress(UpstreamError):
        await _copy(peer, upstream)


async def _copy(source: ByteStream, sink: ByteStream) -> None:
    async for chunk in source:
        await sink.send(chunk)
    await sink.send_eof()


class _Upstream(Passthrough):
    """Raises `UpstreamError`, so that its errors are told from those of the peer."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        with _translated():
            return await self.stream.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        with _translated():
            await self.stream.send(item)

    async def send_eof(self) -> None:
        with _translated():
            await self.stream.send_eof()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except BrokenResourceError as exc:
        raise UpstreamError("the connection to the upstream is lost") from exc
