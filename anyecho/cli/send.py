"""``anyecho send``: send messages, a file or standard input; write the echo to standard output as it returns."""

from __future__ import annotations

__all__ = ("app", "send")

import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from anyio import create_task_group

from anyecho.address import UDPAddress, parse_address
from anyecho.backends import run
from anyecho.cli.environment import ENVIRONMENT
from anyecho.cli.flags import BackendFlag, IPv4Flag, IPv6Flag, verb
from anyecho.cli.logs import LogOptions, log_to_stderr
from anyecho.cli.signals import Signals, caught_signals
from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.client.source import Source
from anyecho.clock import run_within, running_clock
from anyecho.errors import LocalError, UsageError, unwrap_single
from anyecho.net.descriptors import read_some
from anyecho.net.threads import NoThreadError, run_in_thread, write_in_thread
from anyecho.net.udp.stream import DATAGRAM_MAX
from anyecho.options import FilePath, option
from anyecho.units import or_infinite

T = TypeVar("T")

logger = logging.getLogger("anyecho.client")

_CHUNK = 65536
_STDIN = 0


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """What is sent in place of messages, and how often."""

    file: FilePath | None = option(None, "Send the contents of this file.")
    repeat: int = option(1, "Send the messages, or the file, this many times.")


def send(
    address: str,
    /,
    *messages: str,
    inputs: InputOptions,
    ipv4: IPv4Flag = False,
    ipv6: IPv6Flag = False,
    backend: BackendFlag = "asyncio",
    options: ConnectOptions,
    log: LogOptions,
) -> int:
    """Send messages to an echo server; write the echo to standard output.

    Each MESSAGE is one write; without messages and --file, standard input is sent. Every byte of the echo is
    compared. Over udp://, each MESSAGE is a datagram, or each line of standard input with its newline, or the file.
    The value off is no limit, for each timeout and buffer size.
    Exit status: 0 if the echo is complete and equal, 1 if not, 3 if there was no connection.
    """
    if ipv4 and ipv6:
        raise UsageError("-4 and -6 exclude each other")
    if inputs.file is not None and messages:
        raise UsageError("messages and --file exclude each other")
    if inputs.repeat < 1:
        raise UsageError(f"--repeat must be 1 or more, not {inputs.repeat}")
    if inputs.repeat > 1 and inputs.file is None and not messages:
        raise UsageError("--repeat needs messages or --file: standard input can be read only once")

    options = replace(options, family=4 if ipv4 else 6 if ipv6 else None)
    with log_to_stderr(log), ENVIRONMENT.attached_to(logger), caught_signals(handled=1) as signals:
        job = partial(_send, address, messages, inputs, options)
        return run(_interruptible, job, signals, backend=backend)


async def _interruptible(job: Callable[[], Awaitable[None]], signals: Signals) -> int:
    """Run `job` until it returns or a signal cancels it; return the exit status."""
    status = 0

    async def stop_on_signal() -> None:
        nonlocal status
        status = 128 + await signals.next()
        tasks.cancel_scope.cancel()

    with unwrap_single():
        async with create_task_group() as tasks:
            tasks.start_soon(stop_on_signal)
            await job()
            tasks.cancel_scope.cancel()

    return status


async def _send(address: str, messages: Sequence[str], inputs: InputOptions, options: ConnectOptions) -> None:
    async with AsyncExitStack() as opened:
        deadline = or_infinite(options.deadline)
        clock = await opened.enter_async_context(running_clock(deadline))
        encoded = [os.fsencode(message) for message in messages]
        source: Source = (item for _ in range(inputs.repeat) for item in encoded)
        if not messages:
            descriptor = _STDIN if inputs.file is None else await _open(inputs.file, deadline)
            if inputs.file is not None:
                opened.callback(os.close, descriptor)
            read = _read_datagrams if isinstance(parse_address(address), UDPAddress) else _read
            if inputs.repeat > 1 and read is _read:
                _check_repeatable(descriptor, inputs.file)
            source = await opened.enter_async_context(aclosing(read(descriptor, inputs.repeat, inputs.file)))

        client = await opened.enter_async_context(await connect(address, options=options))
        clock.tick()
        left = max(deadline - clock.elapsed, 0.0)
        async for chunk in await opened.enter_async_context(client.send(source, deadline=left)):
            await _write(chunk)


async def _open(file: FilePath, deadline: float) -> int:
    """Open `file` within `deadline` seconds: open(2) of a FIFO blocks until a process opens it for writing."""
    try:
        return await run_within(deadline, _run_in_thread, partial(os.open, file, os.O_RDONLY), file)
    except TimeoutError as exc:
        raise LocalError(f"cannot read {file}: no process writes to it") from exc
    except NoThreadError as exc:
        raise LocalError(f"cannot read {file}: {exc.strerror}") from exc
    except OSError as exc:
        raise UsageError(f"cannot read {file}: {exc.strerror}") from exc


def _check_repeatable(descriptor: int, file: FilePath | None) -> None:
    try:
        os.lseek(descriptor, 0, os.SEEK_CUR)
    except OSError as exc:
        raise UsageError(
            f"--repeat needs a file that can be read again, and {file} cannot ({exc.strerror})"
        ) from exc


async def _read(descriptor: int, repeat: int, file: FilePath | None) -> AsyncGenerator[bytes, None]:
    try:
        for again in range(repeat):
            if again:
                os.lseek(descriptor, 0, os.SEEK_SET)
            while chunk := await _run_in_thread(partial(read_some, descriptor, _CHUNK), descriptor):
                yield chunk
    except OSError as exc:
        raise LocalError(f"cannot read {file or 'standard input'}: {exc.strerror}") from exc


async def _run_in_thread(call: Callable[[], T], source: FilePath | int) -> T:
    """Return ``call()``, which opens or reads `source`, run in a thread; without one, in the event loop.

    Raises `NoThreadError` without one if it may have to wait for another process.
    """
    try:
        return await run_in_thread(call)
    except NoThreadError:
        if _may_wait(source):
            raise
        return call()


def _may_wait(file: FilePath | int) -> bool:
    """Return whether to open or to read `file` can block until another process acts."""
    return os.path.exists(file) and not os.path.isfile(file)


async def _read_datagrams(descriptor: int, repeat: int, file: FilePath | None) -> AsyncGenerator[bytes, None]:
    """Yield each line of standard input, with its newline, or the whole file; read(2) keeps no boundaries."""
    rest = b""
    async with aclosing(_read(descriptor, 1, file)) as chunks:
        async for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n") if file is None else [rest + chunk]
            for line in lines:
                yield line + b"\n"
            if len(rest) > DATAGRAM_MAX:
                what = file or "a line of standard input"
                raise UsageError(f"{what} is too large for a datagram, which holds at most {DATAGRAM_MAX} bytes")

    for _ in range(repeat):
        if rest or file is not None:
            yield rest


async def _write(chunk: bytes) -> None:
    try:
        await write_in_thread(1, chunk)
    except OSError as exc:
        raise LocalError(f"cannot write the echo to standard output: {exc.strerror}") from exc


app = verb(send)
