"""The records of connections, in the event loop of the server."""

from __future__ import annotations

import pytest
from anyio import fail_after

import anyecho
from anyecho.server.recorder import Recorder, holds
from anyecho.server.server import Server
from tests.support.peers import TIMEOUT


@pytest.fixture(autouse=True)
def engine() -> str:
    """The real default. The events engine has no records."""
    return "auto"


async def close_one(server: Server, recorder: Recorder) -> None:
    async with await anyecho.connect(server.address) as client:
        assert await client.exchange(b"hello") == b"hello"
    with fail_after(TIMEOUT):
        await recorder.wait_until(lambda: recorder.connections[-1].closed)


async def test_connections_are_recorded_from_the_call_on(server: Server) -> None:
    async with await anyecho.connect(server.address) as before:
        assert await before.exchange(b"x") == b"x"
        recorder = server.record_connections()
        await close_one(server, recorder)
        assert await before.exchange(b"y") == b"y"
    [record] = recorder.connections
    assert (record.received, record.closed) == (b"hello", "eof")


async def test_a_second_call_returns_the_same_records(server: Server) -> None:
    first, second = server.record_connections(), server.record_connections()
    await close_one(server, first)
    assert second.connections == first.connections != []


@pytest.mark.by_turns("anyio_backend")
async def test_a_rejected_connection_has_no_record() -> None:
    options = anyecho.ServeOptions(max_connections_per_ip=1)
    async with anyecho.open_server("tcp://127.0.0.1:0", options=options) as server:
        recorder = server.record_connections()
        async with await anyecho.connect(server.address) as client:
            await client.exchange(b"hello")
            with pytest.raises(anyecho.AnyechoError):
                async with await anyecho.connect(server.address) as rejected:
                    await rejected.exchange(b"hello")
            assert len(recorder.connections) == 1


@pytest.mark.parametrize(("value", "held"), [([], False), ([0], False), ([1], True)])
def test_a_condition_on_a_connection_that_is_not_there_is_false(value: list[int], *, held: bool) -> None:
    assert holds(lambda: value[0]) is held
