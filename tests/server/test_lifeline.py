"""The connection of a supervisor and its workers: lines in both directions, and answers in parts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from anyio import create_task_group, fail_after

from anyecho.cli.environment import Environment
from anyecho.cli.job import Job
from anyecho.cli.worker import run_worker
from anyecho.errors import UsageError
from anyecho.net.lifeline import Lifeline, open_lifeline
from anyecho.server.answers import Answers, answer
from tests.support.peers import SOON
from tests.support.tasks import wait_all_tasks_blocked


@pytest.fixture(autouse=True)
def engine() -> None:
    """A lifeline has no engine, so each test runs once."""


@pytest.fixture
def ends() -> Iterator[tuple[Lifeline, Lifeline]]:
    """The ends of a supervisor and of its worker."""
    supervisor, passed = open_lifeline()
    with passed:
        yield supervisor, Lifeline(passed)
        supervisor.close()


async def test_an_answer_in_parts_is_returned_whole_and_a_late_one_dropped(
    ends: tuple[Lifeline, Lifeline],
) -> None:
    supervisor, own = ends
    answers = Answers(supervisor)
    assert await answers.ask("peers", 0.0) == []
    found: list[object] = []

    async def ask() -> None:
        found.extend(await answers.ask("peers", SOON))

    with fail_after(SOON):
        async with create_task_group() as tasks:
            tasks.start_soon(ask)
            numbers = [(await own.receive() or {})["number"] for _ in range(2)]
            for number, part, last in ((0, "late", True), (1, "one", False), (1, "two", True)):
                await answer(own, numbers[number], [part], last=last)
                answers.take(await supervisor.receive() or {})
                await wait_all_tasks_blocked()
                assert bool(found) == (part == "two")

    assert found == ["one", "two"]


async def test_lines_that_wait_for_a_slow_reader_come_in_order(ends: tuple[Lifeline, Lifeline]) -> None:
    supervisor, own = ends
    taken = [number for number in range(100) if own.send({"number": number, "filler": "x" * 10_000})]
    assert taken == list(range(len(taken))), "a line that does not fit is dropped"
    with fail_after(SOON):
        for number in taken[:-1]:
            message = await supervisor.receive()
            assert message is not None
            assert message["number"] == number
        assert own.send({"number": "last"})
        numbers = [(await supervisor.receive() or {})["number"] for _ in range(2)]
    assert numbers == [taken[-1], "last"]


async def test_an_end_receives_while_it_sends(ends: tuple[Lifeline, Lifeline]) -> None:
    supervisor, own = ends
    received: list[object] = []

    async def receive() -> None:
        received.append(await own.receive())

    with fail_after(SOON):
        async with create_task_group() as tasks:
            tasks.start_soon(receive)
            tasks.start_soon(own.send_all, {"filler": "x" * 1_000_000})
            await wait_all_tasks_blocked()
            assert await supervisor.receive()
            await wait_all_tasks_blocked()
            assert supervisor.send({"number": 1})

    assert received == [{"number": 1}]


@pytest.fixture
def passed(ends: tuple[Lifeline, Lifeline], monkeypatch: pytest.MonkeyPatch) -> Lifeline:
    """The end of a supervisor, whose worker takes over the other one and does not know its job."""

    def refuse(message: object) -> None:
        assert message == {"job": "strange"}
        raise UsageError("no job is strange", options=("job",))

    monkeypatch.setattr("anyecho.cli.worker.inherit_lifeline", lambda _: ends[1])
    monkeypatch.setattr(Lifeline, "exit_after_end", lambda *_: None)
    monkeypatch.setattr(Job, "from_message", refuse)
    return ends[0]


async def test_a_worker_whose_job_is_wrong_says_so_to_its_supervisor(passed: Lifeline) -> None:
    passed.send({"job": "strange"})
    assert run_worker(0, [], Environment()) == 1
    assert await passed.receive() == {"failed": {"text": "no job is strange", "options": ["job"], "is_usage": True}}


def test_a_worker_whose_job_is_wrong_has_an_error_of_its_own_if_its_supervisor_is_gone(passed: Lifeline) -> None:
    passed.send({"job": "strange"})
    passed.close()
    with pytest.raises(UsageError, match="no job is strange"):
        run_worker(0, [], Environment())


def test_a_worker_that_gets_no_job_ends(passed: Lifeline) -> None:
    """Its supervisor has ended meanwhile."""
    passed.close()
    assert run_worker(0, [], Environment()) == 0
