"""Where shards run: executors with what is known about their processes."""

from __future__ import annotations

__all__ = ("Place", "local_places")

from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass


async def _never_lost() -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a shard runs: an executor, of which all calls run in one process, and a function that runs at once."""

    name: str
    executor: Executor
    #: Calls a function of `shard`, also while the executor is busy.
    call: Callable[[Callable[[str], None], str], None]
    #: Whether the executor is gone, so that its futures will never be done.
    is_lost: Callable[[], Awaitable[bool]] = _never_lost
    #: Among the shards of its machine: number, and how many.
    on_machine: tuple[int, int] = (0, 1)
    #: Seconds from the order to start until the shard has it, at most.
    latency: float = 1.0
    is_remote: bool = False


@contextmanager
def local_places(count: int) -> Iterator[list[Place]]:
    """Yield places for `count` processes on this machine."""
    # Threads: each only waits for its process, and the death of a process concerns no other.
    with ThreadPoolExecutor(max_workers=count) as executor:
        yield [
            Place(name=f"process {number + 1}", executor=executor, call=_call, on_machine=(number, count))
            for number in range(count)
        ]


def _call(function: Callable[[str], None], key: str) -> None:
    function(key)
