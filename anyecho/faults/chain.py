"""A stream with faults that may change while it is used.

A fault that is added acts on the bytes that come after, one that is replaced or removed on those that it holds too.
No byte is lost by a change.
"""

from __future__ import annotations

__all__ = ("FaultChain",)

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from anyio import CancelScope, ResourceGuard
from anyio.abc import ByteStream, TaskGroup

from anyecho.faults.fault import Fault, StreamFault
from anyecho.faults.plan import Drawn
from anyecho.faults.spoiled import Spoiled
from anyecho.streams import Passthrough


@dataclass(eq=False)
class FaultChain(Passthrough):
    """`stream`, which it owns, with the faults of the last `change`. `tasks` must outlive it."""

    tasks: TaskGroup
    #: The streams with the faults that act, by name.
    _named: dict[str, Spoiled[Any]] = field(init=False, default_factory=dict)
    #: All of each direction, in the order in which bytes pass them. One that was removed may still hold bytes.
    _upstream: list[Spoiled[Any]] = field(init=False, default_factory=list)
    _downstream: list[Spoiled[Any]] = field(init=False, default_factory=list)
    _outermost: ByteStream = field(init=False)
    _receiving: ResourceGuard = field(init=False, default_factory=lambda: ResourceGuard("receiving from"))
    #: The call of `receive` that waits.
    _waiting: CancelScope | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._outermost = self.stream

    @property
    def faults(self) -> dict[str, Fault]:
        """The faults of streams that act, by name."""
        return {name: each.fault for name, each in self._named.items()}

    def change(self, drawn: Iterable[Drawn]) -> bool:
        """Let the faults of streams in `drawn` act from now on, and no other.

        One with the name, kind and direction of a fault that acts already replaces it, and counts bytes on. A new
        one is the last of its direction. Return false if the connection has to end, as after a black hole.
        """
        wanted = {each.name: each for each in drawn if isinstance(each.fault, StreamFault)}
        differs = self.faults != {name: each.fault for name, each in wanted.items()}
        may_continue = True
        for name, each in [*self._named.items()]:
            if name in wanted and _fits(each.fault, wanted[name].fault):
                fault = wanted.pop(name).fault
                if fault != each.fault:
                    each.replace(fault)
            else:
                del self._named[name]
                each.remove()
                may_continue = may_continue and not each.fault.ends_when_removed
        for name, (_, fault, random) in wanted.items():
            added = fault.wrap(self.stream, random, self.tasks)
            assert isinstance(added, Spoiled)
            self._named[name] = added
            (self._upstream if added.fault.stream == "upstream" else self._downstream).append(added)
        self._link()
        # A receive that waits begins anew, since what arrives next passes the new faults: a cancelled one has lost
        # no byte. A send continues, and its next piece passes them.
        if differs and self._waiting is not None:
            self._waiting.cancel()
        return may_continue

    def _link(self) -> None:
        for direction in (self._upstream, self._downstream):
            direction[:] = [each for each in direction if not (each.removed and each.is_idle)]
        outermost = self.stream
        for each in (*self._upstream, *reversed(self._downstream)):
            each.stream = outermost
            outermost = each
        self._outermost = outermost

    async def receive(self, max_bytes: int = 65536) -> bytes:
        with self._receiving:
            while True:
                with CancelScope() as self._waiting:
                    return await self._outermost.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        await self._outermost.send(item)

    async def send_eof(self) -> None:
        await self._outermost.send_eof()

    async def aclose(self) -> None:
        await self._outermost.aclose()


def _fits(before: Fault, after: Fault) -> bool:
    return type(before) is type(after) and getattr(before, "stream", "") == getattr(after, "stream", "")
