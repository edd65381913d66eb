"""The workers of a Dask cluster as places of shards, with a client of distributed that only remembers its calls."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

from anyecho.errors import AnyechoError, BackendError, StartError
from anyecho.measure import dask_workers, shard
from anyecho.measure.division import measure_of
from anyecho.measure.places import Place
from anyecho.measure.series import Plan
from anyecho.measure.shard_options import ShardOptions

SCHEDULER = "tcp://scheduler:8786"


class Client:
    """What `dask_places` uses of ``distributed.Client``."""

    def __init__(self, *workers: str, error: Exception | None = None) -> None:
        self.workers = list(workers)
        self.error = error
        self.is_closed = False
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, scheduler: str, **_: Any) -> Client:
        assert scheduler == SCHEDULER
        if self.error is not None:
            raise self.error
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.is_closed = True

    def nthreads(self) -> dict[str, int]:
        return dict.fromkeys(self.workers, 1)

    def get_executor(self, *, workers: list[str], **_: Any) -> Any:
        return workers

    def run(self, function: Any, key: str, *, workers: list[str], **_: Any) -> None:
        self.calls.append((function, key, workers))
        raise ValueError("the shard is gone")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client("tcp://10.0.0.2:7", "tcp://10.0.0.1:9", "tcp://10.0.0.1:8")
    install(client, monkeypatch)
    return client


def install(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed: Any = ModuleType("distributed")
    distributed.__spec__ = ModuleSpec("distributed", None)
    distributed.Client = client
    monkeypatch.setitem(sys.modules, "distributed", distributed)


def test_each_worker_is_a_place_and_those_of_a_machine_share_its_cores(client: Client) -> None:
    with dask_workers.dask_places(SCHEDULER) as places:
        found: list[Any] = [(each.name, each.executor, each.on_machine) for each in places]
        assert found == [
            ("worker tcp://10.0.0.1:8", ["tcp://10.0.0.1:8"], (0, 2)),
            ("worker tcp://10.0.0.1:9", ["tcp://10.0.0.1:9"], (1, 2)),
            ("worker tcp://10.0.0.2:7", ["tcp://10.0.0.2:7"], (0, 1)),
        ]
        assert all(each.is_remote for each in places)
        assert not client.is_closed

    assert client.is_closed


async def test_a_worker_that_is_gone_is_lost_and_called_no_more(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(places: list[Place]) -> list[bool]:
        return [await each.is_lost() for each in places]

    with dask_workers.dask_places(SCHEDULER) as places:
        client.workers.remove("tcp://10.0.0.1:9")
        monkeypatch.setattr(dask_workers, "_LOOK", 3600.0)
        assert await lost(places) == [False] * 3, "the scheduler was asked a moment ago"
        monkeypatch.setattr(dask_workers, "_LOOK", 0.0)
        assert await lost(places) == [False, True, False]
        for each in places:
            each.call(shard.discard, "key")  # whose error concerns nothing else

    called = [["tcp://10.0.0.1:8"], ["tcp://10.0.0.2:7"]]
    assert client.calls == [(shard.discard, "key", workers) for workers in called]


@pytest.mark.parametrize(
    ("client", "kind", "line"),
    [
        (None, BackendError, "distributed is not installed: pip install 'anyecho[cluster]'"),
        (Client(), StartError, f"the Dask scheduler {SCHEDULER} has no workers"),
        (
            Client(error=OSError("Timed out\nafter 10 s")),
            StartError,
            f"cannot connect to the Dask scheduler {SCHEDULER}: Timed out",
        ),
        (
            Client(error=ValueError()),
            StartError,
            f"cannot connect to the Dask scheduler {SCHEDULER}: ValueError",
        ),
    ],
)
def test_a_cluster_that_cannot_be_used_is_an_error_of_one_line(
    client: Client | None, kind: type[AnyechoError], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if client is None:
        monkeypatch.setitem(sys.modules, "distributed", None)
    else:
        install(client, monkeypatch)
    with pytest.raises(kind) as caught, measure_of(Plan(cells=()), ShardOptions(dask=SCHEDULER), "asyncio"):
        pytest.fail("entered")
    assert str(caught.value) == line
