"""Errors, named by the side at fault.

Each error has a text of one line that tells the user what to do. An open stream raises the errors of anyio instead,
like any anyio stream: `BrokenResourceError` (peer or network), `ClosedResourceError` (closed by this side),
`BusyResourceError` (two tasks use it at once).
"""

from __future__ import annotations

__all__ = (
    "AddressError",
    "AnyechoError",
    "BackendError",
    "BindError",
    "CertificateError",
    "ConnectError",
    "EchoError",
    "EchoLost",
    "EchoMismatch",
    "EchoStalled",
    "EchoTruncated",
    "InternalError",
    "LocalError",
    "StartError",
    "UnitError",
    "UsageError",
    "quoted",
    "unwrap_single",
)

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

#: Characters of a wrong value that an error shows.
_SHOWN = 60


class AnyechoError(Exception):
    """Base class of all errors of anyecho; never raised itself.

    `options` are the attribute names of the options in the text, so that a command line can replace them by its
    flags. In the text they precede any value: a path may contain the same words.
    """

    def __init__(self, *args: object, options: Collection[str] = ()) -> None:
        super().__init__(*args)
        self.options: tuple[str, ...] = tuple(options)


class UsageError(AnyechoError, ValueError):
    """Fault of the caller: an invalid value, found before anything is opened."""


class AddressError(UsageError):
    """The text or the values of an address are invalid."""


class UnitError(UsageError):
    """The text of a duration, size or rate is invalid."""


class StartError(AnyechoError):
    """Fault of the machine or the network: the server or client could not start."""


class BackendError(StartError):
    """The requested backend is not installed."""


class BindError(StartError):
    """Listening on an address failed."""


class CertificateError(StartError):
    """A certificate, key or CA could not be used."""


class ConnectError(StartError):
    """Connecting failed at every address of the peer."""


class LocalError(AnyechoError):
    """Fault of this side: local input or output could not be read or written."""


class InternalError(AnyechoError):
    """Fault of anyecho: its own figures contradict each other, so that no result can be trusted."""


class EchoError(AnyechoError):
    """Fault of the peer: the echo is wrong or incomplete. `offset` is the first such byte, counted from 0."""

    def __init__(self, message: str, *, offset: int) -> None:
        super().__init__(message)
        self.offset = offset

    def __reduce__(self) -> tuple[Callable[..., EchoError], tuple[object, ...]]:
        return partial(type(self), offset=self.offset), self.args


class EchoLost(EchoError):
    """Datagrams had no reply in time."""


class EchoMismatch(EchoError):
    """A received byte differs from the byte sent, or was never sent."""


class EchoTruncated(EchoError):
    """The connection ended before all bytes were back."""


class EchoStalled(EchoError):
    """Echo is outstanding and no byte moved within the time limit."""


class _Unchanged(AbstractContextManager[None]):
    """Keeps the exception that leaves its block."""

    kept: BaseException | None = None

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> None:
        self.kept = error


def quoted(value: object) -> str:
    """Return the repr of `value` on one line, cut after 60 characters."""
    try:
        text = " ".join(repr(value).split())
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


@contextmanager
def unwrap_single() -> Iterator[AbstractContextManager[None]]:
    """Raise the single error in a task group's exception group without the group, so that callers can catch it.

    A group of several errors is raised unchanged, unless all are errors of anyecho, or all are `KeyboardInterrupt`
    (on trio, a second Ctrl-C ends another task than the first): then the first is raised. A group that has left
    the block of the yielded context manager is raised unchanged.
    """
    unchanged = _Unchanged()
    try:
        yield unchanged
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group, unchanged.kept))
        kinds = AnyechoError, KeyboardInterrupt
        if len(leaves) > 1 and not any(all(isinstance(each, kind) for each in leaves) for kind in kinds):
            raise

        first = leaves[0]
        context = first.__context__
        try:
            raise first
        finally:
            first.__context__ = context  # not the group, which `raise` has set


def _leaves(error: BaseException, kept: BaseException | None = None) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup) and not _is_same_group(error, kept):
        for inner in error.exceptions:
            yield from _leaves(inner, kept)
    else:
        yield error


def _is_same_group(group: BaseExceptionGroup[BaseException], other: BaseException | None) -> bool:
    # Not by identity: a trio nursery splits a group and makes an equal one.
    return (
        isinstance(other, BaseExceptionGroup)
        and group.message == other.message
        and [*map(id, _leaves(group))] == [*map(id, _leaves(other))]
    )
