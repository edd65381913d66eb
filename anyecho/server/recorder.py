"""A record of each connection of a server, for tests: its peer, the bytes received first, and its close reason."""

from __future__ import annotations

__all__ = ("RECORDED_BYTES", "ConnectionRecord", "Recorder", "holds")

from collections.abc import Callable
from typing import Any

from anyio import Event
from anyio.abc import ByteStream

from anyecho.streams import Transcript

#: Received bytes that the record of a connection keeps.
RECORDED_BYTES = 65536


def holds(condition: Callable[[], object]) -> bool:
    """Whether `condition()` is true. An `IndexError` is false: a connection that is not there yet."""
    try:
        return bool(condition())
    except IndexError:
        return False


class ConnectionRecord:
    """A connection of a server in a test. Its attributes may be read in any thread.

    * `peer`: the socket address that connected; behind a proxy, that of the proxy;
    * `closed`: the close reason, a key of `Stats.closed`; None while the connection is open.
    """

    def __init__(self, peer: Any) -> None:
        self.peer = peer
        self.closed: str | None = None
        self._received = bytearray()

    @property
    def received(self) -> bytes:
        """The first 64 KiB that the echo or the handler has received, after TLS and the faults."""
        return bytes(self._received)

    def __repr__(self) -> str:
        return f"<connection from {self.peer}, {self.closed or 'open'}, received {self.received[:64]!r}>"


class Recorder:
    """Keeps a record of each connection, in the order of accept. Used in the thread of the event loop."""

    def __init__(self) -> None:
        self.connections: list[ConnectionRecord] = []
        self._open: dict[object, ConnectionRecord] = {}
        self._changed = Event()

    def begin(self, connection: object, peer: Any) -> None:
        self._open[connection] = record = ConnectionRecord(peer)
        self.connections.append(record)
        self._notify()

    def wrap(self, connection: object, stream: ByteStream) -> ByteStream:
        """Return `stream` with a wrapper that records what it receives, if `connection` has a record."""
        record = self._open.get(connection)
        if record is None:
            return stream

        def add(what: str, chunk: bytes) -> None:
            if what == "received":
                record._received += chunk[: RECORDED_BYTES - len(record._received)]
            self._notify()

        return Transcript(stream, add)

    def end(self, connection: object, reason: str) -> None:
        record = self._open.pop(connection, None)
        if record is not None:
            record.closed = reason
        self._notify()

    async def wait_until(self, condition: Callable[[], object]) -> None:
        """Return once `condition` holds. It is called whenever a connection begins, moves bytes or ends."""
        while not holds(condition):
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = Event()
