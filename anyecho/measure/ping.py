"""A ping in the manner of ping(8): one small message an interval, each reply compared and timed.

Latency is from before send(2) to after the comparison, and so includes the wake-up of the event loop. The work of a
report between two replies is not included, except for replies that arrive meanwhile.
"""

from __future__ import annotations

__all__ = ("Ping",)

from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter_ns
from typing import Protocol

from anyio import CancelScope, Event, create_task_group, current_time, sleep, sleep_until
from anyio.abc import TaskGroup

from anyecho.address import Address, UDPAddress, parse_address
from anyecho.client.client import Client, connect_checked
from anyecho.client.options import check_options
from anyecho.errors import unwrap_single
from anyecho.measure import probes as events
from anyecho.measure.ping_datagrams import DatagramPing
from anyecho.measure.ping_options import PingOptions
from anyecho.measure.ping_streams import ConnectionPing, StreamPing
from anyecho.measure.probes import Probe, Probes
from anyecho.net.connect import ConnectStep
from anyecho.units import or_infinite
from anyecho.validation import check_kind

#: Seconds between two looks at the timeouts: timers of event loops have milliseconds, and may be early.
_EXPIRY_STEP = 0.001


class _Path(Protocol):
    async def send(self, probe: Probe) -> None: ...

    async def aclose(self) -> None: ...


class Ping:
    """One ping of `address`. `report` gets each event, in order, from within `run`.

    `before_probe` is awaited before each probe, for a reader of the events that cannot keep up.

    Raises:
        AddressError: `address` is not an address.
        UsageError: `options` are not `PingOptions`, or do not fit `address`.
    """

    def __init__(
        self,
        address: str | Address,
        options: PingOptions | None = None,
        *,
        report: Callable[[events.Event], object] = lambda _: None,
        before_probe: Callable[[], Awaitable[object]] | None = None,
        clock: Callable[[], int] = perf_counter_ns,
    ) -> None:
        self.address = parse_address(address)
        self.options = PingOptions() if options is None else options
        check_kind(self.options, PingOptions)
        self._connect_options = self.options.connect_options()
        check_options(self._connect_options, self.address)
        self.options.check_for(self.address)
        timeout = or_infinite(self.options.timeout) * 1e9
        self.probes = Probes(self.options.size, timeout, self._on_event, clock=clock)
        self._report = report
        self._before_probe = before_probe
        self._changed = Event()

    async def run(self) -> None:
        """Send probes until `count` or `deadline` is reached; without them, until cancelled.

        Raises:
            ConnectError: the first connection is refused, or the name is unknown.
            CertificateError: a file of the TLS options cannot be used.
        """
        with CancelScope() as scope:
            scope.deadline = current_time() + or_infinite(self.options.deadline)
            with unwrap_single():
                async with create_task_group() as tasks:
                    path = self._path(tasks)
                    try:
                        if self.options.timeout is not None:
                            tasks.start_soon(self._expire)
                        tasks.start_soon(self._send_all, path)
                        await self._until(self._is_complete)
                    finally:
                        tasks.cancel_scope.cancel()
                        await path.aclose()

    @property
    def exit_status(self) -> int:
        """The exit status of ping(8): 0, 1 if replies are missing, 2 if every probe was refused.

        In addition to ping(8), a wrong byte is 1.
        """
        counts, options = self.probes.counts, self.options
        if not counts.received:
            return 2 if counts.errors == counts.transmitted > 0 else 1
        if counts.wrong or counts.stray:
            return 1

        too_few = options.deadline is not None and counts.received < (options.count or 0)
        return 1 if too_few else 0

    def _path(self, tasks: TaskGroup) -> _Path:
        if isinstance(self.address, UDPAddress):
            return DatagramPing(self.address, self._connect, self.probes, tasks)
        if self.options.connect:
            return ConnectionPing(self._connect, self.probes, tasks)

        return StreamPing(self.address, self._connect, self.probes, tasks)

    async def _connect(self, on_step: Callable[[ConnectStep], object]) -> Client:
        return await connect_checked(self.address, self._connect_options, on_step=on_step)

    async def _send_all(self, path: _Path) -> None:
        start, sent = current_time(), 0
        interval = self.options.interval
        while not self._is_all_sent():
            if self._before_probe is not None:
                await self._before_probe()
            probe = self.probes.begin()
            await path.send(probe)
            self._notify()
            if not interval:
                await self._until(partial(_is_settled, probe))
                continue

            sent += 1
            if current_time() - (start + sent * interval) > interval:
                # After a stop (Ctrl-Z) or a slow connection: the missed probes are not sent in a burst.
                start, sent = current_time(), 0
            await sleep_until(start + sent * interval)

    def _is_all_sent(self) -> bool:
        """Whether `count` probes are sent. With a deadline, `count` is a number of replies, as in ping(8)."""
        counts, count = self.probes.counts, or_infinite(self.options.count)
        if self.options.deadline is None:
            return counts.transmitted >= count

        return counts.received + counts.errors >= count

    def _is_complete(self) -> bool:
        return self._is_all_sent() and (self.options.deadline is not None or not self.probes.outstanding)

    async def _expire(self) -> None:
        while True:
            while (expiry := self.probes.next_expiry) is None:
                await self._changed.wait()
            await sleep(max((expiry - self.probes.clock()) / 1e9, 0.0) + _EXPIRY_STEP)
            self.probes.expire(self.probes.clock())

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition`, which an event makes true."""
        while not condition():
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = Event()

    def _on_event(self, event: events.Event) -> None:
        self._notify()
        self._report(event)


def _is_settled(probe: Probe) -> bool:
    return not probe.outstanding
