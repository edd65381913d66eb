"""``anyecho send``: messages, a file or standard input out; the echo on standard output as it returns."""

from __future__ import annotations

__all__ = ("send",)

import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from anyio import create_task_group, to_thread
from cyclopts import Parameter

from anyecho.backends import run
from anyecho.cli.flags import BackendFlag
from anyecho.cli.logs import LogOptions, log_to_stderr
from anyecho.cli.signals import Signals, caught_signals
from anyecho.errors import LocalError, UsageError, bare_errors
from anyecho.measure.client import connect
from anyecho.measure.exchange import Source
from anyecho.measure.options import ConnectOptions

_CHUNK = 65536
_STDIN = 0


def send(
    address: str,
    /,
    *messages: str,
    file: Annotated[Path | None, Parameter(help="Send what is in this file.")] = None,
    repeat: Annotated[int, Parameter(help="Send the messages, or the file, this often.")] = 1,
    ipv4: Annotated[bool, Parameter(name="-4", help="Use only IPv4.", negative=())] = False,
    ipv6: Annotated[bool, Parameter(name="-6", help="Use only IPv6.", negative=())] = False,
    backend: BackendFlag = "asyncio",
    options: ConnectOptions,
    log: LogOptions,
) -> int:
    """Send messages to an echo server; write what comes back to standard output.

    Each MESSAGE is a write of its own; without any, and without --file, standard input is sent. Every byte is
    compared as it returns. Exit status: 0 if all came back equal, 1 if not, 3 if there was no connection.
    """
    if ipv4 and ipv6:
        raise UsageError("-4 and -6 exclude each other")
    if file is not None and messages:
        raise UsageError("messages and --file exclude each other")
    if repeat < 1:
        raise UsageError(f"--repeat must be 1 or more, not {repeat}")
    if repeat > 1 and file is None and not messages:
        raise UsageError("--repeat needs messages or --file: standard input can be read only once")

    options = replace(options, family=4 if ipv4 else 6 if ipv6 else None)
    source: Source = [os.fsencode(message) for message in messages] * repeat
    if not messages:
        source = _read(_STDIN, 1, "standard input") if file is None else _read(_open(file), repeat, str(file))
    with log_to_stderr(log), caught_signals(forgive=1) as signals:
        return run(_send, address, source, options, signals, backend=backend)


async def _send(address: str, source: Source, options: ConnectOptions, signals: Signals) -> int:
    status = 0

    async def stop_on_signal() -> None:
        nonlocal status
        status = 128 + await signals.next()
        tasks.cancel_scope.cancel()

    with bare_errors():
        async with create_task_group() as tasks:
            tasks.start_soon(stop_on_signal)
            async with AsyncExitStack() as opened:
                if isinstance(source, AsyncGenerator):
                    await opened.enter_async_context(aclosing(source))
                client = await opened.enter_async_context(await connect(address, options=options))
                async for chunk in await opened.enter_async_context(client.send(source)):
                    await to_thread.run_sync(_write, chunk, abandon_on_cancel=True)

            tasks.cancel_scope.cancel()

    return status


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY)
    except OSError as exc:
        raise UsageError(f"cannot read {file}: {exc.strerror}") from exc


async def _read(descriptor: int, repeat: int, name: str) -> AsyncGenerator[bytes, None]:
    try:
        for again in range(repeat):
            if again:
                os.lseek(descriptor, 0, os.SEEK_SET)
            # In a thread that is abandoned when cancelled: a terminal says nothing for as long as it likes.
            while chunk := await to_thread.run_sync(os.read, descriptor, _CHUNK, abandon_on_cancel=True):
                yield chunk
    except OSError as exc:
        raise LocalError(f"cannot read {name}: {exc.strerror}") from exc


def _write(chunk: bytes) -> None:
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[os.write(1, rest) :]
    except OSError as exc:
        raise LocalError(f"cannot write the echo to standard output: {exc.strerror}") from exc
