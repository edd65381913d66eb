"""The workers of a Dask cluster as places of shards, one on each.

A shard runs in a child process of its worker, so that neither the worker's event loop nor its GIL disturbs it. All
that is said to a shard goes through the scheduler: workers need no connection to this machine.
"""

from __future__ import annotations

__all__ = ("dask_places",)

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from anyio import to_thread

from anyecho.errors import BackendError, StartError
from anyecho.measure.places import Place

#: Seconds to reach the scheduler, between two looks at its workers, and for a call of a worker to arrive.
_TIMEOUT, _LOOK, _LATENCY = 10.0, 0.5, 2.0


@contextmanager
def dask_places(scheduler: str) -> Iterator[list[Place]]:
    """Connect to the `scheduler`, like ``tcp://host:8786``, and yield a place on each of its workers.

    Raises:
        BackendError: the package distributed is not installed.
        StartError: the scheduler is not reached, or has no workers.
    """
    if find_spec("distributed") is None:
        raise BackendError("distributed is not installed: pip install 'anyecho[cluster]'")

    from distributed import Client

    connect: Callable[..., Any] = Client
    try:
        client = connect(scheduler, timeout=_TIMEOUT, set_as_default=False)
    except (OSError, ValueError, ImportError) as exc:  # its TimeoutError is an OSError
        reason = str(exc).partition("\n")[0] or type(exc).__name__
        raise StartError(f"cannot connect to the Dask scheduler {scheduler}: {reason}") from exc

    with client:
        cluster = _Cluster(client)
        if not cluster.workers:
            raise StartError(f"the Dask scheduler {scheduler} has no workers")

        yield cluster.places()


class _Cluster:
    def __init__(self, client: Any) -> None:
        self._client = client
        self.workers: set[str] = set(client.nthreads())
        self._looked_at = time.monotonic()

    def places(self) -> list[Place]:
        """Return a place on each worker; those of a machine share its cores."""
        hosts = Counter[str]()
        found = []
        for worker in sorted(self.workers):
            host = _host(worker)
            found.append((worker, host, hosts[host]))
            hosts[host] += 1
        return [
            Place(
                name=f"worker {worker}",
                executor=self._client.get_executor(workers=[worker], allow_other_workers=False, pure=False),
                call=self._caller(worker),
                is_lost=self._watcher(worker),
                on_machine=(number, hosts[host]),
                latency=_LATENCY,
                is_remote=True,
            )
            for worker, host, number in found
        ]

    def _caller(self, worker: str) -> Callable[[Callable[[str], None], str], None]:
        def call(function: Callable[[str], None], key: str) -> None:
            if worker in self.workers:
                with suppress(Exception):  # the worker is gone, or its shard
                    self._client.run(function, key, workers=[worker], on_error="ignore")

        return call

    def _watcher(self, worker: str) -> Callable[[], Any]:
        async def is_lost() -> bool:
            if time.monotonic() - self._looked_at > _LOOK:
                self.workers = set(await to_thread.run_sync(self._client.nthreads))
                self._looked_at = time.monotonic()
            return worker not in self.workers

        return is_lost


def _host(address: str) -> str:
    """Return the host of ``tcp://host:port``."""
    return address.rpartition("://")[2].rpartition(":")[0]
