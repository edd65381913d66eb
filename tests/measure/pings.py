"""Run a ping and collect its events."""

from __future__ import annotations

__all__ = ("SOON", "Scene", "failures", "numbers")

from collections.abc import Sequence
from typing import Any

from anyio import fail_after

from anyecho.address import Address
from anyecho.measure.ping import Ping
from anyecho.measure.ping_options import PingOptions
from anyecho.measure.probes import Event, Failed, Lost, Reply, Wrong

SOON = 20.0


class Scene:
    """A ping, which sends a probe after the last is settled, and its events."""

    def __init__(self, address: str | Address, **given: Any) -> None:
        self.events: list[Event] = []
        self.ping = Ping(address, PingOptions(**{"interval": 0.0} | given), report=self.events.append)

    async def run(self) -> list[Event]:
        with fail_after(SOON):
            await self.ping.run()
        counts = self.ping.probes.counts
        assert counts.transmitted == counts.received + counts.wrong + counts.lost + counts.outstanding
        return self.events

    @property
    def counts(self) -> dict[str, int]:
        return {name: value for name, value in vars(self.ping.probes.counts).items() if value}


def numbers(events: Sequence[Event], kind: type[Reply | Lost | Wrong], **matching: Any) -> list[int | None]:
    """Return the numbers of the events of `kind` with these values."""
    return [
        event.number
        for event in events
        if isinstance(event, kind) and all(getattr(event, name) == value for name, value in matching.items())
    ]


def failures(events: Sequence[Event]) -> list[tuple[tuple[int, ...], str]]:
    return [(event.numbers, event.reason) for event in events if isinstance(event, Failed)]
