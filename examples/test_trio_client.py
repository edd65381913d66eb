"""The same tests for both versions of the client: the first one fails each of them."""

import pytest
import trio

from anyecho import ServeOptions
from anyecho.faults import LimitData, Slicer, Stall
from trio_client import Truncated, ask, ask_before

# pytest-trio puts the failure of a test into a group.
VERSIONS = [pytest.param(ask_before, marks=pytest.mark.xfail(strict=True, raises=BaseExceptionGroup)), ask]
QUESTIONS = [b"first?\n", b"second?\n"]


@pytest.fixture
def server_with(echo_server_factory):
    return lambda fault: echo_server_factory(options=ServeOptions(faults=(fault,), seed=1))


@pytest.mark.trio
@pytest.mark.parametrize("ask", VERSIONS)
async def test_answers_that_come_in_pieces_are_put_together(ask, server_with):
    server = server_with(Slicer(average_size=5, delay=0.3))
    assert await ask(server.host, server.port, QUESTIONS) == QUESTIONS


@pytest.mark.trio
@pytest.mark.parametrize("ask", VERSIONS)
async def test_half_an_answer_is_an_error(ask, server_with):
    server = server_with(LimitData(bytes=10))
    with pytest.raises(Truncated, match=r"^after 1 of 2 answers, and b'sec'$"):
        await ask(server.host, server.port, QUESTIONS)


@pytest.mark.trio
@pytest.mark.parametrize("ask", VERSIONS)
async def test_an_answer_that_does_not_come_in_time_is_an_error(ask, server_with):
    server = server_with(Stall(bytes=7, seconds=2))
    with pytest.raises(trio.TooSlowError):
        await ask(server.host, server.port, QUESTIONS)
