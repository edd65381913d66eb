"""Run each load of a plan in this process, as one shard, in several processes, or on the workers of a cluster."""

from __future__ import annotations

__all__ = ("measure_of",)

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from anyecho.backends import Backend
from anyecho.errors import UsageError
from anyecho.measure.bench import run_bench
from anyecho.measure.control import BenchControl
from anyecho.measure.dask_workers import dask_places
from anyecho.measure.options import BenchOptions
from anyecho.measure.places import Place, local_places
from anyecho.measure.result import RunResult
from anyecho.measure.series import Measure, Plan
from anyecho.measure.shard_options import ShardOptions
from anyecho.measure.shards import run_shards, shares_of


@contextmanager
def measure_of(plan: Plan, shards: ShardOptions, backend: Backend) -> Iterator[Measure]:
    """Yield the function that runs one load of `plan`.

    Raises:
        UsageError: a start is given, and there are several runs; or it is past.
        StartError: the cluster cannot be used.
    """
    places: Callable[[], AbstractContextManager[list[Place]]] | None = None
    if shards.dask is not None:
        places = partial(dask_places, shards.dask)
    elif shards.processes > 1:
        places = partial(local_places, shards.processes)
    if places is None:
        yield _single(plan, shards, backend)
        return

    with places() as opened:

        async def measure(address: str, options: BenchOptions, control: BenchControl) -> RunResult:
            return await run_shards(address, options, opened, backend=backend, control=control)

        yield measure


def _single(plan: Plan, shards: ShardOptions, backend: Backend) -> Measure:
    index, count = shards.part
    start_at = shards.start(time.time())
    is_single = plan.search is None and len(plan.cells) * plan.rounds == 1
    if (count > 1 or start_at is not None) and not is_single:
        given = "shard" if shards.shard is not None else "start_at"
        text = f"{given} is of a single run: give no lists, repeat, matrix or find_rate"
        raise UsageError(text, options=(given,))

    async def measure(address: str, options: BenchOptions, control: BenchControl) -> RunResult:
        return await run_bench(
            address,
            shares_of(options, count)[index],
            backend=backend,
            shard=(index, count),
            start_at=start_at,
            control=control,
            exclusive=True,
        )

    return measure
