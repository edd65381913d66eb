"""Clients in closed loops: each connects, exchanges a message, ends the connection, and begins anew."""

from __future__ import annotations

__all__ = ("ClosedLoop", "closed_loop")

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from tests.support.peers import dial, exchange, receive_all
from tests.support.process import wait_until


class ClosedLoop:
    """Counts connections that were served to their end, and the reasons of those that were not."""

    def __init__(self, address: str) -> None:
        self.failures: list[str] = []
        self._address = address
        self._served: dict[int, int] = {}
        self._stopped = Event()

    @property
    def served(self) -> int:
        return sum(self._served.values())

    def wait_for(self, count: int, timeout: float = 600.0) -> None:
        """Wait for `count` more connections."""
        wanted = self.served + count
        wait_until(lambda: self.served >= wanted, timeout)

    def run(self, number: int) -> None:
        self._served[number] = 0
        message = b"message of client %d" % number
        while not self._stopped.is_set():
            try:
                with dial(self._address) as sock:
                    assert exchange(sock, message) == message
                    sock.shutdown(socket.SHUT_WR)
                    assert receive_all(sock) == b""
            except (OSError, AssertionError) as exc:
                self.failures.append(f"{type(exc).__name__}: {exc}")
            else:
                self._served[number] += 1

    def stop(self) -> None:
        self._stopped.set()


@contextmanager
def closed_loop(address: str, *, clients: int = 16) -> Iterator[ClosedLoop]:
    """Run that many clients within the block."""
    loop = ClosedLoop(address)
    threads = [Thread(target=loop.run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield loop
    finally:
        loop.stop()
        for thread in threads:
            thread.join()
