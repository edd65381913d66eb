"""Error classes, and `unwrap_single` on errors of task groups."""

from __future__ import annotations

import traceback

import pytest
from anyio import CancelScope, create_task_group, sleep_forever

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
from tests.support.tasks import wait_all_tasks_blocked


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
def test_an_error_is_a_subclass_of_its_kind_of_fault(error: type[Exception], fault: type[Exception]) -> None:
    assert issubclass(error, fault)


def test_every_error_is_an_anyecho_error() -> None:
    classes = [each for each in map(errors.__dict__.get, errors.__all__) if isinstance(each, type)]

    assert AnyechoError in classes
    assert all(issubclass(each, AnyechoError) for each in classes)


@pytest.mark.parametrize("error", [EchoMismatch, EchoTruncated, EchoStalled])
def test_an_echo_error_has_the_offset_of_the_first_wrong_byte(error: type[EchoError]) -> None:
    raised = error("byte 3 is wrong", offset=3)

    assert raised.offset == 3
    assert str(raised) == "byte 3 is wrong"


def test_unwrap_single_does_nothing_without_an_error() -> None:
    with unwrap_single():
        reached = True

    assert reached


def test_an_error_without_a_group_is_raised_unchanged() -> None:
    error = LookupError()
    with pytest.raises(LookupError) as caught, unwrap_single():
        raise error

    assert caught.value is error


@pytest.mark.parametrize("error", [ConnectError("refused"), OSError("broken"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_single_error_of_a_group_is_raised_alone(error: BaseException, depth: int) -> None:
    raised = error
    for _ in range(depth):
        raised = BaseExceptionGroup("", [raised])

    with pytest.raises(type(error)) as caught, unwrap_single():
        raise raised

    assert caught.value is error


def test_of_several_anyecho_errors_the_first_is_raised() -> None:
    first, second, third = EchoMismatch("1", offset=1), ConnectError("2"), EchoStalled("3", offset=3)
    with pytest.raises(AnyechoError) as caught, unwrap_single():
        raise ExceptionGroup("", [ExceptionGroup("", [first, second]), third])

    assert caught.value is first


def test_of_several_interrupts_the_first_is_raised() -> None:
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
    ids=["AnyechoError first", "no AnyechoError", "AnyechoError nested", "with an interrupt"],
)
def test_a_group_of_different_errors_is_raised_unchanged(group: BaseExceptionGroup[BaseException]) -> None:
    with pytest.raises(BaseExceptionGroup) as caught, unwrap_single():
        raise group

    assert caught.value is group


def test_an_unwrapped_error_keeps_its_cause() -> None:
    cause = OSError("the reason")
    error = ConnectError("refused")
    error.__cause__ = cause
    with pytest.raises(ConnectError) as caught, unwrap_single():
        raise ExceptionGroup("", [error])

    assert caught.value.__cause__ is cause


def test_the_traceback_of_an_unwrapped_error_shows_no_group() -> None:
    with pytest.raises(ConnectError) as caught, unwrap_single():
        raise ExceptionGroup("", [ConnectError("refused")])

    text = "".join(traceback.format_exception(caught.value))
    assert "ConnectError: refused" in text
    assert "ExceptionGroup" not in text


async def test_the_error_of_a_task_is_raised_without_its_group() -> None:
    error = ConnectError("refused")
    with pytest.raises(ConnectError) as caught, unwrap_single():
        async with create_task_group() as tasks:
            tasks.start_soon(sleep_forever)
            tasks.start_soon(fail, error)

    assert caught.value is error


async def test_the_error_of_a_task_group_body_is_raised_without_its_group() -> None:
    error = ConnectError("refused")
    with pytest.raises(ConnectError) as caught, unwrap_single():
        async with create_task_group() as tasks:
            tasks.start_soon(sleep_forever)
            raise error

    assert caught.value is error


async def test_an_error_in_nested_task_groups_is_raised_without_them() -> None:
    error = ConnectError("refused")
    with pytest.raises(ConnectError) as caught, unwrap_single():
        async with create_task_group() as outer, create_task_group() as inner:
            outer.start_soon(sleep_forever)
            inner.start_soon(fail, error)

    assert caught.value is error


async def test_of_several_anyecho_errors_in_a_task_group_only_one_is_raised() -> None:
    errors = (ConnectError("one"), EchoStalled("two", offset=2))
    with pytest.raises(AnyechoError) as caught, unwrap_single():
        async with create_task_group() as tasks:
            for error in errors:
                tasks.start_soon(fail_when_cancelled, error)
            await wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()

    assert caught.value in errors


async def test_an_anyecho_error_does_not_hide_another_error() -> None:
    ours, other = ConnectError("refused"), LookupError("a bug")
    with pytest.raises(ExceptionGroup) as caught, unwrap_single():
        async with create_task_group() as tasks:
            tasks.start_soon(fail_when_cancelled, ours)
            await wait_all_tasks_blocked()
            raise other

    assert set(caught.value.exceptions) == {ours, other}


async def test_an_outer_cancellation_propagates() -> None:
    with CancelScope() as scope, unwrap_single():
        async with create_task_group() as tasks:
            tasks.start_soon(sleep_forever)
            tasks.start_soon(sleep_forever)
            scope.cancel()

    assert scope.cancelled_caught
