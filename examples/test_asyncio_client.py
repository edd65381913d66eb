"""The same tests for both versions of the client: the first one fails each of them."""

import pytest
import stamina

from anyecho import ServeOptions
from anyecho.faults import Cut, ResetPeer, Slicer, Timeout
from asyncio_client import ask, ask_before

FAILURES = (OSError, AssertionError)
VERSIONS = [pytest.param(ask_before, marks=pytest.mark.xfail(strict=True, raises=FAILURES)), ask]


@pytest.fixture(autouse=True)
def _no_wait_between_attempts():
    with stamina.set_testing(True, attempts=5, cap=True):
        yield


@pytest.mark.asyncio
@pytest.mark.parametrize("ask", VERSIONS)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(ResetPeer(first=2), id="two connections are reset"),
        pytest.param(Timeout(timeout=2, first=1), id="the first connection is a black hole"),
        pytest.param(Cut(bytes=4, first=1), id="the first answer is cut"),
        pytest.param(Slicer(average_size=4, delay=0.3), id="every answer comes in pieces"),
    ],
)
async def test_the_client_has_the_answer_although(fault, ask, echo_server_factory):
    server = echo_server_factory(options=ServeOptions(faults=(fault,), seed=1))
    assert await ask(server.host, server.port, b"hello?\n") == b"hello?\n"
