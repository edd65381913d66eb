"""Sources: iterables of buffers that a client sends.

An item other than `bytes` is copied when it is taken: the source may refill the same buffer for the next item while
the echo of the first is still outstanding.
"""

from __future__ import annotations

__all__ = ("Item", "Source", "check_source", "items_of", "to_bytes")

from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from anyecho.errors import UsageError

if TYPE_CHECKING:
    # An object with the buffer protocol. For type checkers alone: collections.abc has it from Python 3.12 on.
    from typing_extensions import Buffer as Item
else:
    Item: TypeAlias = bytes | bytearray | memoryview

#: The items to send, each as one write or one datagram.
Source: TypeAlias = Iterable[Item] | AsyncIterable[Item]


def to_bytes(item: Any, what: str = "an item to send") -> bytes:
    """Return the bytes of `item`. Raises `UsageError` if it is not a buffer, such as a str or an int."""
    if type(item) is bytes:
        return item
    try:
        with memoryview(item) as view:
            return view.tobytes()
    except (TypeError, ValueError, BufferError) as exc:
        hint = ": encode it" if isinstance(item, str) else ""
        raise UsageError(f"{what} must be bytes or another buffer, not {type(item).__name__}{hint}") from exc


def check_source(source: Any) -> None:
    """Raise `UsageError` if `source` is a single buffer, a str, or not an iterable."""
    if isinstance(source, str):
        raise UsageError("a source must be an iterable of bytes, not str: send [text.encode()]")
    wanted = f"a source must be an iterable of bytes, not {type(source).__name__}"
    with suppress(TypeError):
        memoryview(source).release()  # it is a buffer
        raise UsageError(f"{wanted}: send [data], or exchange(data)")
    if not (isinstance(source, AsyncIterable | Iterable) or hasattr(source, "__getitem__")):
        raise UsageError(wanted)


async def items_of(source: Source) -> AsyncGenerator[bytes, None]:
    """Yield the items of `source` as bytes; the caller closes it. Raises `UsageError` for an item not a buffer."""
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield to_bytes(item)
    else:
        for item in source:
            yield to_bytes(item)
