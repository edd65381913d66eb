"""The pages of ``--admin``: what they answer, for a server and while it drains."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import AsyncIterator, Sequence

import pytest
from anyio import create_task_group, to_thread

import anyecho
from anyecho.address import Address
from anyecho.net.http import Request, Response
from anyecho.server.admin import Admin, open_admin
from anyecho.server.server import Server
from anyecho.server.stats import Peer
from anyecho.server.totals import Totals
from tests.support.peers import converse, dial, until_closed
from tests.support.tasks import wait_all_tasks_blocked


class Steady:
    """A source that does not change."""

    def __init__(self, *, ready: bool = True, peers: Sequence[Peer] = ()) -> None:
        self._ready = ready
        self._peers = peers

    def ready(self) -> bool:
        return self._ready

    async def totals(self) -> Totals:
        return Totals(accepted=3, open=1, closed={"eof": 2})

    async def peers(self) -> AsyncIterator[Sequence[Peer]]:
        for peer in self._peers:
            yield [peer]


@pytest.fixture
async def admin(server: Server) -> AsyncIterator[Address]:
    async with open_admin(server.monitor(), "127.0.0.1:0") as admin:
        yield admin.addresses[0]


async def get(address: Address, path: str, host: str = "localhost") -> tuple[int, str, str]:
    """Return the status, the header and the body of the answer to a GET."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    answer = await to_thread.run_sync(lambda: converse(dial(address), request.encode()))
    header, _, body = answer.decode().partition("\r\n\r\n")
    return int(header.split()[1]), header, body


async def ask(path: str, method: str = "GET", source: Steady | None = None) -> Response:
    return await Admin(source or Steady()).handle(Request(method=method, path=path))


async def test_metrics_are_what_clients_counted(server: Server, admin: Address) -> None:
    for size in (1, 1000, 100_000):
        async with await anyecho.connect(server.address) as client:
            await client.exchange(bytes(size))
    await until_closed(server, 3)
    status, header, body = await get(admin, "/metrics")

    assert status == 200
    assert "content-type: text/plain; version=0.0.4; charset=utf-8" in header.lower()
    assert "\nanyecho_connections_accepted_total 3.0\n" in body
    assert '\nanyecho_connections_closed_total{reason="eof"} 3.0\n' in body
    assert "\nanyecho_received_bytes_total 101001.0\n" in body
    assert "\nanyecho_connection_duration_seconds_count 3.0\n" in body


async def test_stats_are_totals_as_json(server: Server, admin: Address) -> None:
    async with await anyecho.connect(server.address) as client:
        await client.exchange(b"hello")
        _, _, body = await get(admin, "/stats")

    stats = json.loads(body)
    assert stats.pop("version") == anyecho.__version__
    assert stats.pop("ready") is True
    totals = Totals.from_json(stats)
    assert (totals.accepted, totals.open, totals.bytes_received, totals.bytes_sent) == (1, 1, 5, 5)


async def test_peers_are_listed_with_their_bytes(server: Server, admin: Address) -> None:
    async with await anyecho.connect(server.address) as client:
        await client.exchange(b"hello")
        _, _, body = await get(admin, "/peers")

    [peer] = json.loads(body)
    assert (peer["bytes_received"], peer["bytes_sent"], peer["via"]) == (5, 5, "")
    assert peer["address"] is not None


@pytest.mark.parametrize("count", [0, 1, 500])
async def test_any_number_of_peers_is_valid_json(count: int) -> None:
    peers = [Peer(address=("::1", port), bytes_received=port, bytes_sent=0) for port in range(count)]
    response = await ask("/peers", source=Steady(peers=peers))

    assert [each["address"] for each in json.loads(response.body)] == [["::1", port] for port in range(count)]


async def test_a_draining_server_is_alive_and_not_ready(server: Server, admin: Address) -> None:
    assert [(await get(admin, path))[0] for path in ("/healthz", "/readyz")] == [200, 200]
    async with await anyecho.connect(server.address) as client, create_task_group() as tasks:
        await client.exchange(b"x")
        tasks.start_soon(server.drain, 60)
        await wait_all_tasks_blocked()
        answers = [(await get(admin, path))[0] for path in ("/healthz", "/readyz", "/metrics", "/stats")]
        await client.aclose()

    assert answers == [200, 503, 200, 200]


@pytest.mark.by_turns("anyio_backend", "engine", "carrier")
@pytest.mark.parametrize(
    ("path", "status"), [("/metrics", 403), ("/stats", 403), ("/peers", 403), ("/healthz", 200), ("/readyz", 200)]
)
async def test_only_health_checks_are_answered_under_a_foreign_host(path: str, status: int, admin: Address) -> None:
    assert (await get(admin, path, host="anyecho.example.com"))[0] == status


@pytest.mark.by_turns("anyio_backend", "engine")
@pytest.mark.parametrize(
    ("path", "method", "status"), [("/", "GET", 404), ("/stats/", "GET", 404), ("/stats", "POST", 405)]
)
async def test_other_pages_and_methods_are_refused(path: str, method: str, status: int) -> None:
    response = await ask(path, method)

    assert response.status == status
    if status == 404:
        assert b"/metrics /healthz /readyz /stats /peers" in response.body
    else:
        assert response.headers == {"Allow": "GET, HEAD"}


@pytest.mark.by_turns("anyio_backend", "engine")
async def test_without_the_extra_all_but_metrics_is_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.delitem(sys.modules, "anyecho.server.metrics", raising=False)
    for name in [name for name in sys.modules if name.startswith("prometheus_client")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    admin = Admin(Steady())
    metrics, stats = [await admin.handle(Request(method="GET", path=path)) for path in ("/metrics", "/stats")]

    advice = "/metrics needs prometheus-client: pip install 'anyecho[metrics]'"
    assert (metrics.status, metrics.body.decode()) == (501, f"{advice}\n")
    assert stats.status == 200
    assert caplog.messages == [advice]
