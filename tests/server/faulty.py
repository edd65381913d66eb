"""Servers with faults or a handler, and blocking sockets as their peers."""

from __future__ import annotations

__all__ = ("TCP", "error_of", "options", "run_soon", "talk")

import socket
from collections.abc import Callable
from typing import Any

from anyio import fail_after, to_thread

from anyecho.faults import Fault
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server
from tests.support.peers import SOON, dial

TCP = "tcp://127.0.0.1:0"


def options(*faults: Fault, **given: Any) -> ServeOptions:
    """Options with the real default of the engine, and a short linger."""
    return ServeOptions(**{"engine": "auto", "linger": 0.5, "seed": 1, "faults": faults, **given})


async def run_soon(call: Callable[..., Any], *args: Any) -> Any:
    """Run `call` in a thread, within a time limit."""
    with fail_after(SOON):
        return await to_thread.run_sync(call, *args)


async def talk(server: Server, script: Callable[[socket.socket], object]) -> Any:
    """Run `script` with a connected blocking socket, in a thread."""

    def run() -> object:
        with dial(server.address) as sock:
            return script(sock)

    return await run_soon(run)


def error_of(script: Callable[[], object]) -> int | None:
    """Return the errno that `script` fails with."""
    try:
        script()
    except OSError as exc:
        return exc.errno

    return None
