"""What can go wrong, named by whose fault it is.

Every error of anyecho's own carries a text of one line that tells a user what to do. A live stream raises
anyio's errors instead (`BrokenResourceError`: the world; `ClosedResourceError`: you; `BusyResourceError`: two
of you), so that ours cannot be told from anybody else's.
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
    "LocalError",
    "StartError",
    "UnitError",
    "UsageError",
    "unwrap_single",
)

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial


class AnyechoError(Exception):
    """The root; never raised itself.

    `options` names the options that the text is about, as attributes, so that a command line can show its own
    spelling of them instead. The text has them before any value: a path may contain the same words.
    """

    def __init__(self, *args: object, options: Collection[str] = ()) -> None:
        super().__init__(*args)
        self.options = tuple(options)


class UsageError(AnyechoError, ValueError):
    """The caller's fault: a value that cannot be right, found before anything was opened."""


class AddressError(UsageError):
    """The text or the values of an address make no sense."""


class UnitError(UsageError):
    """The text of a duration, size or rate makes no sense."""


class StartError(AnyechoError):
    """The machine's or the network's fault: it could not start."""


class BackendError(StartError):
    """The backend asked for is not installed."""


class BindError(StartError):
    """An address could not be listened on."""


class CertificateError(StartError):
    """A certificate, key or CA could not be used."""


class ConnectError(StartError):
    """No address of the peer could be connected to."""


class LocalError(AnyechoError):
    """This side's fault: what was to be read or written here could not be."""


class EchoError(AnyechoError):
    """The peer's fault: it is no echo. `offset` is the first byte that is wrong or missing, counted from 0."""

    def __init__(self, message: str, *, offset: int) -> None:
        super().__init__(message)
        self.offset = offset

    def __reduce__(self) -> tuple[Callable[..., EchoError], tuple[object, ...]]:
        return partial(type(self), offset=self.offset), self.args


class EchoLost(EchoError):
    """Datagrams were not answered in time."""


class EchoMismatch(EchoError):
    """A byte came back that is not the one that went out, or that nobody sent."""


class EchoTruncated(EchoError):
    """The connection ended before all bytes were back."""


class EchoStalled(EchoError):
    """Bytes are owed and none has moved within the time allowed."""


@contextmanager
def unwrap_single() -> Iterator[list[BaseException]]:
    """Let the one error inside a task group's exception group out bare, so that callers can name it.

    A group of several is left as it is, unless all of them are anyecho's own: then the first says enough. The same
    holds for several `KeyboardInterrupt`: on trio, a second Ctrl-C ends another task than the first. A group that
    the caller's own block raised is left as it is, if it was put on the list.
    """
    whole: list[BaseException] = []
    try:
        yield whole
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group, whole))
        if len(leaves) > 1 and not any(_are_all(kind, leaves) for kind in (AnyechoError, KeyboardInterrupt)):
            raise

        first = leaves[0]
        context = first.__context__
        try:
            raise first
        finally:
            first.__context__ = context  # its own history, not the group it was in


def _are_all(kind: type[BaseException], errors: Sequence[BaseException]) -> bool:
    return all(isinstance(error, kind) for error in errors)


def _leaves(error: BaseException, whole: Sequence[BaseException] = ()) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup) and not any(_are_same(error, each) for each in whole):
        for inner in error.exceptions:
            yield from _leaves(inner, whole)
    else:
        yield error


def _are_same(group: BaseExceptionGroup[BaseException], other: BaseException) -> bool:
    # Not by identity: on its way through a nursery, trio takes a group apart and makes another like it.
    return (
        isinstance(other, BaseExceptionGroup)
        and group.message == other.message
        and [*map(id, _leaves(group))] == [*map(id, _leaves(other))]
    )
