"""UDP echo of a server, on all of its datagram sockets.

`udp_guard` decides which datagrams get a reply.
"""

from __future__ import annotations

__all__ = ("UDPEcho",)

from collections.abc import Sequence
from typing import TYPE_CHECKING

from anyio import create_task_group

from anyecho.net.poller import Fallback, Poller
from anyecho.net.udp.counts import DatagramCounts
from anyecho.net.udp.echo import Reflector
from anyecho.server.options import ServeOptions
from anyecho.server.udp_guard import SourceGuard

if TYPE_CHECKING:
    import socket


class UDPEcho:
    """Echoes on bound datagram sockets, with one guard for all. The caller closes the sockets."""

    def __init__(self, socks: Sequence[socket.socket], options: ServeOptions, counts: DatagramCounts) -> None:
        ports = {sock.getsockname()[1] for sock in socks}
        guard = SourceGuard(options, ports, counts.dropped)
        tune = not options.socket.rcvbuf
        self._reflectors = [Reflector(sock, guard, counts, tune=tune) for sock in socks]

    async def run(self, poller: Poller | Fallback) -> None:
        """Echo until cancelled."""
        async with create_task_group() as tasks:
            for reflector in self._reflectors:
                tasks.start_soon(reflector.run, poller)

    def finish(self) -> None:
        """Echo the datagrams that are queued already, before the sockets are closed."""
        for reflector in self._reflectors:
            reflector.finish()

    def stop(self) -> None:
        """Echo nothing from now on."""
        for reflector in self._reflectors:
            reflector.stop()
