"""The control API of a server in a thread, for test suites and scripts without an event loop."""

from __future__ import annotations

__all__ = ("threaded_control",)

from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress

from anyecho.address import Address
from anyecho.server.control import DEFAULT_CONTROL, Control, open_control
from anyecho.threaded import ThreadedServer


@contextmanager
def threaded_control(server: ThreadedServer, address: str | Address = DEFAULT_CONTROL) -> Iterator[Control]:
    """Let clients of toxiproxy change `server`, which runs in its thread, as `open_control` does.

    The block must end before that of the server.

    Raises:
        AddressError: `address` is not an address.
        UsageError: `address` is not plain TCP or a Unix socket; every address of `server` is for datagrams, or its
            `engine` is ``events``.
        BindError: listening on `address` fails.
        StartError: no descriptor is left for epoll.
    """
    opened = server._portal.wrap_async_context_manager(open_control(server._server, address))
    # In a thread: a portal of trio refuses calls from one that runs trio.
    with ThreadPoolExecutor(1) as executor:
        control = executor.submit(opened.__enter__).result()
        try:
            yield control
        finally:
            with suppress(CancelledError, RuntimeError):  # the server has failed, and raises its error
                executor.submit(opened.__exit__, None, None, None).result()
