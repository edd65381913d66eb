"""Send the probes of a ping over streams: one connection for all, or a connection for each.

An echo has no boundaries: after a wrong byte, the following bytes cannot be assigned to probes any more. So the
connection is replaced then, as after a break, and the probes outstanding on it are lost.
"""

from __future__ import annotations

__all__ = ("ConnectionPing", "StreamPing", "peer_of")

import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeAlias

from anyio import BrokenResourceError, CancelScope, ClosedResourceError, EndOfStream, move_on_after
from anyio.abc import SocketAttribute, TaskGroup

from anyecho.address import Address, TCPAddress, UDPAddress
from anyecho.client.client import Client
from anyecho.errors import ConnectError, EchoError, EchoMismatch
from anyecho.measure.probes import Probe, Probes
from anyecho.net.connect import ConnectStep
from anyecho.net.stream import PolledStream
from anyecho.net.tls.connect import connect_error, is_refusal
from anyecho.net.tls.errors import explain
from anyecho.units import format_duration

#: Opens a connection; calls its argument after each step.
Connect: TypeAlias = Callable[[Callable[[ConnectStep], object]], Awaitable[Client]]

_STEPS: dict[ConnectStep, str] = {"resolved": "dns", "connected": "connect", "secured": "tls"}


def peer_of(stream: Any, address: Address) -> str:
    """Return the endpoint of `address` that `stream` is connected to."""
    remote = stream.extra(SocketAttribute.remote_address, None)
    if isinstance(address, TCPAddress | UDPAddress) and remote is not None:
        return str(replace(address, host=remote[0], port=remote[1]))

    return str(address)


def _is_timeout(exc: ConnectError) -> bool:
    """Whether the peer was silent, which is a lost probe, rather than refused, which is an error."""
    return isinstance(exc.__cause__, TimeoutError)


def _is_later(probe: Probe, exc: ConnectError) -> bool:
    """Whether a ping goes on after `exc`. A refusal of its first probe ends it: the address is probably wrong."""
    return probe.number > 1 or _is_timeout(exc)


class StreamPing:
    """Probes on one connection, which is opened with the first and replaced once it is broken."""

    def __init__(self, address: Address, connect: Connect, probes: Probes, tasks: TaskGroup) -> None:
        """`tasks` reads from the connections."""
        self._address = address
        self._connect = connect
        self._probes = probes
        self._tasks = tasks
        self._stream: PolledStream | None = None
        #: Probes of this connection, in order, until their echo is complete; the lost ones included.
        self._expected: deque[Probe] = deque()
        #: Bytes of the first one that are back.
        self._returned = 0
        self._has_connected = self._has_received = False

    async def send(self, probe: Probe) -> None:
        """Send `probe`. Raises `ConnectError` if the first connection is refused."""
        stream = self._stream or await self._open(probe)
        if stream is None:
            return
        self._expected.append(probe)
        self._probes.sent(probe)
        try:
            if stream.send_nowait(probe.payload):
                return
            limit = self._probes.timeout / 1e9
            with move_on_after(limit) as scope:
                await stream.send(stream.rest)
        except (BrokenResourceError, ClosedResourceError):
            return  # the reading task reports it: echo from before the failure may still come
        if scope.cancelled_caught:
            await self._drop(stream, f"the server has read nothing for {format_duration(limit)}")

    async def aclose(self) -> None:
        if self._stream is not None:
            with CancelScope(shield=True):
                await self._stream.aclose()

    async def _open(self, probe: Probe) -> PolledStream | None:
        try:
            client = await self._connect(lambda _: None)
        except ConnectError as exc:
            if not _is_later(probe, exc):
                raise
            self._probes.fail([probe], str(exc), error=not _is_timeout(exc))
            return None

        assert isinstance(client.stream, PolledStream)
        self._stream = client.stream
        self._probes.connected(peer_of(client.stream, self._address), again=self._has_connected)
        self._has_connected = True
        self._tasks.start_soon(self._receive, client.stream)
        return client.stream

    async def _receive(self, stream: PolledStream) -> None:
        try:
            while (wrong := self._match(await stream.receive())) is None:
                pass
            reason = f"{wrong}: the connection is closed"
        except EndOfStream:
            reason = "the server closed the connection"
        except ClosedResourceError:
            return
        except BrokenResourceError as exc:
            cause = exc.__cause__ or exc
            if not self._has_received and is_refusal(cause):
                # TLS 1.3: the server refuses the client's certificate only after the client's handshake.
                raise connect_error(str(self._address), cause) from exc
            reason = f"the connection broke ({explain(cause)})"

        await self._drop(stream, reason)

    def _match(self, chunk: bytes) -> str | None:
        """Compare `chunk` with what is expected; count each complete reply. Return what is wrong, if anything."""
        self._has_received = True
        at = 0
        while at < len(chunk):
            if not self._expected:
                reason = f"{len(chunk) - at} bytes came that were never sent"
                self._probes.wrong(None, reason)
                return reason

            probe = self._expected[0]
            expected = probe.payload[self._returned : self._returned + len(chunk) - at]
            back = chunk[at : at + len(expected)]
            if back != expected:
                wrong = next(i for i, byte in enumerate(back) if byte != expected[i])
                values = f"sent 0x{expected[wrong]:02x}, got 0x{back[wrong]:02x}"
                reason = f"byte {self._returned + wrong} is wrong: {values}"
                self._probes.wrong(probe, reason)
                return "a byte was wrong"

            at += len(back)
            self._returned += len(back)
            if self._returned == len(probe.payload):
                self._probes.reply(probe, self._probes.clock())
                self._expected.popleft()
                self._returned = 0

        return None

    async def _drop(self, stream: PolledStream, reason: str) -> None:
        if stream is self._stream:
            self._stream = None
            lost, self._expected, self._returned = self._expected, deque(), 0
            self._probes.fail(lost, reason)
            with CancelScope(shield=True):
                await stream.aclose()


class ConnectionPing:
    """A connection for each probe, in a task of its own, so that a slow one delays no other."""

    def __init__(self, connect: Connect, probes: Probes, tasks: TaskGroup) -> None:
        self._connect = connect
        self._probes = probes
        self._tasks = tasks

    async def send(self, probe: Probe) -> None:
        """Start a connection for `probe`. `ConnectError` is raised in the task group if the first is refused."""
        self._probes.sent(probe)
        self._tasks.start_soon(self._exchange, probe)

    async def aclose(self) -> None:
        """The task group ends the connections."""

    async def _exchange(self, probe: Probe) -> None:
        probes = self._probes
        steps: dict[str, int] = {}
        last = 0

        def reached(step: ConnectStep) -> None:
            nonlocal last
            now, before = probes.clock(), last
            last = now
            if step in _STEPS:
                steps[_STEPS[step]] = now - before
            else:
                probes.sent(probe)

        # A probe that is cancelled here is counted as lost by its timeout, at the same time.
        limit = probes.timeout / 1e9
        with move_on_after(None if math.isinf(limit) else limit):
            try:
                async with await self._connect(reached) as client:
                    last = probes.clock()
                    await client.exchange(probe.payload)
                    now = probes.clock()
                    probes.reply(probe, now, steps | {"echo": now - last})
            except EchoMismatch as exc:
                probes.wrong(probe, str(exc))
            except ConnectError as exc:
                if not _is_later(probe, exc):
                    raise
                probes.fail([probe], str(exc), error=not _is_timeout(exc))
            except EchoError as exc:
                probes.fail([probe], str(exc))
