"""Errors: whose fault they are, and how they come out of a task group."""

from __future__ import annotations

import traceback

import pytest
from anyio import CancelScope, create_task_group, sleep_forever, wait_all_tasks_blocked

from anyecho import errors
from anyecho.errors import (
    AddressError,
    AnyechoError,
    BackendError,
    BindError,
    CertificateError,
    ConnectError,
    EchoError,
    EchoLost,
    EchoMismatch,
    EchoStalled,
    EchoTruncated,
    LocalError,
    StartError,
    UnitError,
    UsageError,
    unwrap_single,
)


async def fail(error: BaseException) -> None:
    raise error


async def fail_when_cancelled(error: BaseException) -> None:
    try:
        await sleep_forever()
    finally:
        raise error


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (AddressError, UsageError),
        (UnitError, UsageError),
        (UsageError, ValueError),
        (BackendError, StartError),
        (BindError, StartError),
        (CertificateError, StartError),
        (ConnectError, StartError),
        (EchoLost, EchoError),
        (EchoMismatch, EchoError),
        (EchoStalled, EchoError),
        (EchoTruncated, EchoError),
        (UsageError, AnyechoError),
        (StartError, AnyechoError),
        (LocalError, AnyechoError),
        (EchoError, AnyechoError),
    ],
)
def test_an_error_is_caught_by_the_name_of_whose_fault_it_is(
    error: type[Exception], fault: type[Exception]
) -> None:
    assert issubclass(error, fault)


def test_every_error_has_the_one_root() -> None:
    classes = [getattr(errors, name) for name in errors.__all__ if name != "unwrap_single"]

    assert AnyechoError in classes
    assert all(issubclass(each, AnyechoError) for each in classes)


@pytest.mark.parametrize("error", [EchoMismatch, EchoTruncated, EchoStalled])
def test_an_error_of_an_echo_knows_the_first_byte_that_is_wrong(error: type[EchoError]) -> None:
    raised = error("byte 3 is wrong", offset=3)

    assert raised.offset == 3
    assert str(raised) == "byte 3 is wrong"


def test_nothing_happens_where_nothing_is_wrong() -> None:
    with unwrap_single():
        reached = True

    assert reached


def test_an_error_that_is_bare_already_passes() -> None:
    error = LookupError()
    with pytest.raises(LookupError) as caught, unwrap_single():
        raise error

    assert caught.value is error


@pytest.mark.parametrize("error", [ConnectError("refused"), OSError("broken"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_one_error_in_a_group_comes_out_bare(error: BaseException, depth: int) -> None:
    raised = error
    for _ in range(depth):
        raised = BaseExceptionGroup("", [raised])

    with pytest.raises(type(error)) as caught, unwrap_single():
        raise raised

    assert caught.value is error


def test_of_several_of_our_own_the_first_comes_out() -> None:
    first, second, third = EchoMismatch("1", offset=1), ConnectError("2"), EchoStalled("3", offset=3)
    with pytest.raises(AnyechoError) as caught, unwrap_single():
        raise ExceptionGroup("", [ExceptionGroup("", [first, second]), third])

    assert caught.value is first


def test_of_several_interrupts_the_first_comes_out() -> None:
    first, second = KeyboardInterrupt(), KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught, unwrap_single():
        raise BaseExceptionGroup("", [BaseExceptionGroup("", [first]), second])

    assert caught.value is first


@pytest.mark.parametrize(
    "group",
    [
        ExceptionGroup("", [ConnectError(), OSError()]),
        ExceptionGroup("", [OSError(), OSError()]),
        ExceptionGroup("", [OSError(), ExceptionGroup("", [ConnectError()])]),
        BaseExceptionGroup("", [ConnectError(), KeyboardInterrupt()]),
    ],
    ids=["ours first", "none of ours", "ours nested", "an interrupt beside ours"],
)
def test_a_group_that_says_more_than_one_error_could_stays(group: BaseExceptionGroup[BaseException]) -> None:
    with pytest.raises(BaseExceptionGroup) as caught, unwrap_single():
        raise group

    assert caught.value is group


def test_an_error_that_comes_out_keeps_its_cause() -> None:
    cause = OSError("the reason")
    error = ConnectError("refused")
    error.__cause__ = cause
    with pytest.raises(ConnectError) as caught, unwrap_single():
        raise ExceptionGroup("", [error])

    assert caught.value.__cause__ is cause


def test_the_traceback_of_a_bare_error_shows_no_group() -> None:
    with pytest.raises(ConnectError) as caught, unwrap_single():
        raise ExceptionGroup("", [ConnectError("refused")])

    text = "".join(traceback.format_exception(caught.value))
    assert "ConnectError: refused" in text
    assert "ExceptionGroup" not in text


async def test_the_error_of_one_task_comes_out_of_its_task_group_bare() -> None:
    error = ConnectError("refused")
    with pytest.raises(ConnectError) as caught, unwrap_single():
        async with create_task_group() as tasks:
            tasks.start_soon(sleep_forever)
            tasks.start_soon(fail, error)

    assert caught.value is error


async def test_the_error_of_a_task_groups_body_comes_out_bare() -> None:
    error = ConnectError("refused")
    with pytest.raises(ConnectError) as caught, unwrap_single():
        async with create_task_group() as tasks:
            tasks.start_soon(sleep_forever)
            raise error

    assert caught.value is error


async def test_an_error_comes_out_of_nested_task_groups_bare() -> None:
    error = ConnectError("refused")
    with pytest.raises(ConnectError) as caught, unwrap_single():
        async with create_task_group() as outer, create_task_group() as inner:
            outer.start_soon(sleep_forever)
            inner.start_soon(fail, error)

    assert caught.value is error


async def test_of_several_of_our_own_in_a_task_group_one_comes_out() -> None:
    errors = (ConnectError("one"), EchoStalled("two", offset=2))
    with pytest.raises(AnyechoError) as caught, unwrap_single():
        async with create_task_group() as tasks:
            for error in errors:
                tasks.start_soon(fail_when_cancelled, error)
            await wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()

    assert caught.value in errors


async def test_an_error_of_another_kind_is_not_hidden_by_ours() -> None:
    ours, other = ConnectError("refused"), LookupError("a bug")
    with pytest.raises(ExceptionGroup) as caught, unwrap_single():
        async with create_task_group() as tasks:
            tasks.start_soon(fail_when_cancelled, ours)
            await wait_all_tasks_blocked()
            raise other

    assert set(caught.value.exceptions) == {ours, other}


async def test_a_cancellation_from_outside_passes() -> None:
    with CancelScope() as scope, unwrap_single():
        async with create_task_group() as tasks:
            tasks.start_soon(sleep_forever)
            tasks.start_soon(sleep_forever)
            scope.cancel()

    assert scope.cancelled_caught
