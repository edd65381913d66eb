"""What is counted of datagrams, and who decides which are answered: what both ways of echoing them share."""

from __future__ import annotations

__all__ = ("DatagramCounts", "Guard", "Source")

import errno
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

#: Host and port of a peer, and what else recvfrom(2) may say of it.
Source: TypeAlias = tuple[Any, ...]


@dataclass(eq=False)
class DatagramCounts:
    """What became of datagrams. `dropped` counts by the guard's reasons, `errors` by errno name.

    ``EAGAIN`` is an answer that the kernel had no room for.
    """

    received: int = 0
    echoed: int = 0
    bytes_received: int = 0
    bytes_echoed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def count_error(self, exc: OSError) -> None:
        self.errors[errno.errorcode.get(exc.errno or 0, str(exc.errno))] += 1


class Guard(Protocol):
    """Decides whom to answer."""

    def begin_turn(self) -> None:
        """Several datagrams come now, which may be judged by one look at the clock."""

    def admit(self, source: Source) -> bool:
        """Whether to answer `source`; if not, the guard has counted why."""

    def refuse(self, source: Source) -> None:
        """`source` was admitted, but an answer would have gone to many, or from many."""
