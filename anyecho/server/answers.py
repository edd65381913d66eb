"""What a supervisor asks a worker over the lifeline, and the answers, which come in parts."""

from __future__ import annotations

__all__ = ("Answers", "answer")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from anyio import Event, move_on_after

from anyecho.net.lifeline import Lifeline


@dataclass(eq=False)
class _Answer:
    parts: list[Any] = field(default_factory=list)
    complete: Event = field(default_factory=Event)


class Answers:
    """The answers that are awaited from a worker. Several may be at once, and one that is too late is dropped."""

    def __init__(self, lifeline: Lifeline) -> None:
        self._lifeline = lifeline
        self._numbers = count()
        self._awaited: dict[int, _Answer] = {}

    async def ask(self, kind: str, within: float) -> list[Any]:
        """Return the parts of the answer, those that have come in `within` seconds or before the end."""
        number = next(self._numbers)
        awaited = self._awaited[number] = _Answer()
        try:
            with move_on_after(within):
                self._lifeline.send({"ask": kind, "number": number})
                await awaited.complete.wait()
        finally:
            del self._awaited[number]

        return awaited.parts

    def take(self, message: Mapping[str, Any]) -> None:
        """Take a message from the worker, which may be a part of an answer."""
        number = message.get("answer")
        awaited = self._awaited.get(number) if isinstance(number, int) else None
        if awaited is not None:
            awaited.parts += message.get("parts", ())
            if message.get("last", True):
                awaited.complete.set()

    def end(self) -> None:
        """Let all requests return: no further message will come."""
        for awaited in self._awaited.values():
            awaited.complete.set()


async def answer(lifeline: Lifeline, number: int, parts: Sequence[Any], *, last: bool) -> None:
    """Send `parts` of the answer to the request `number`."""
    await lifeline.send_all({"answer": number, "parts": parts, "last": last})
