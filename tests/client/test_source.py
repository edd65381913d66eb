"""Items of a source are copied when they are taken; an invalid source is an error of one line."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from anyecho.client.client import Client, connect
from anyecho.client.options import ConnectOptions
from anyecho.client.source import items_of
from anyecho.errors import UsageError
from anyecho.server.server import open_server

ADDRESSES = ("tcp://127.0.0.1:0", "udp://127.0.0.1:0")


def mapped(data: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memory


#: Objects with the buffer protocol, each with the bytes it holds.
BUFFERS: dict[str, tuple[Any, bytes]] = {
    "bytes": (b"hello", b"hello"),
    "bytearray": (bytearray(b"hello"), b"hello"),
    "memoryview": (memoryview(b"hello"), b"hello"),
    "every second byte": (memoryview(b"hello")[::2], b"hlo"),
    "array of ints": (array("i", [1, 2, 3]), array("i", [1, 2, 3]).tobytes()),
    "memoryview of ints": (memoryview(array("i", [1, 2, 3])), array("i", [1, 2, 3]).tobytes()),
    "two dimensions": (memoryview(bytes(range(6))).cast("B", (2, 3)), bytes(range(6))),
    "no dimension": (memoryview(array("d", [1.5])).cast("B").cast("d", ()), array("d", [1.5]).tobytes()),
    "mmap": (mapped(b"hello"), b"hello"),
    "nothing": (bytearray(), b""),
}


async def send_all(client: Client, source: Any) -> bytes:
    async with client.send(source) as echo:
        return b"".join([chunk async for chunk in echo])


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.by_turns("anyio_backend")
async def test_any_buffer_is_sent_as_its_bytes(kind: str, address: str) -> None:
    buffer, content = BUFFERS[kind]
    async with open_server(address) as server, await connect(server.addresses[0]) as client:
        assert await client.exchange(buffer) == content
        assert await send_all(client, [buffer, buffer]) == content * 2


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_source_may_refill_one_buffer_for_each_item(address: str) -> None:
    def read_into_one_buffer() -> Iterator[memoryview]:
        buffer = bytearray(1000)
        for number in range(50):
            buffer[:] = bytes([number]) * 1000
            yield memoryview(buffer)[: 1000 - number]

    expected = b"".join(map(bytes, (bytes([number]) * (1000 - number) for number in range(50))))
    async with open_server(address) as server, await connect(server.addresses[0]) as client:
        assert await send_all(client, read_into_one_buffer()) == expected


async def test_an_async_source_may_refill_its_buffer() -> None:
    async def read_into_one_buffer() -> AsyncIterator[bytearray]:
        buffer = bytearray(3)
        for number in range(3):
            buffer[:] = bytes([number]) * 3
            yield buffer

    async with open_server("tcp://127.0.0.1:0") as server, await connect(server.addresses[0]) as client:
        assert await send_all(client, read_into_one_buffer()) == b"\0\0\0\1\1\1\2\2\2"


async def generate() -> AsyncIterator[bytes]:
    yield b"never"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (b"hello", "a source must be an iterable of bytes, not bytes: send [data], or exchange(data)"),
        (bytearray(b"hello"), "a source must be an iterable of bytes, not bytearray: send .*"),
        (memoryview(b"hello"), "a source must be an iterable of bytes, not memoryview: send .*"),
        (array("B", b"hello"), "a source must be an iterable of bytes, not array: send .*"),
        (mapped(b"hello"), "a source must be an iterable of bytes, not mmap: send .*"),
        ("hello", r"a source must be an iterable of bytes, not str: send \[text.encode\(\)\]"),
        (None, "a source must be an iterable of bytes, not NoneType"),
        (5, "a source must be an iterable of bytes, not int"),
        (generate, "a source must be an iterable of bytes, not function"),
        (Path("file"), "a source must be an iterable of bytes, not PosixPath"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.by_turns("anyio_backend")
async def test_an_invalid_source_is_a_usage_error_and_the_client_stays_usable(
    source: Any, line: str, address: str
) -> None:
    async with open_server(address) as server, await connect(server.addresses[0]) as client:
        with pytest.raises(UsageError, match=f"^{line.replace('[data]', '.data.').replace('(data)', '.data.')}$"):
            await send_all(client, source)
        assert await client.exchange(b"fine") == b"fine"


@pytest.mark.parametrize(
    ("payload", "line"),
    [
        ("hello", "a payload must be bytes or another buffer, not str: encode it"),
        (None, "a payload must be bytes or another buffer, not NoneType"),
        (5, "a payload must be bytes or another buffer, not int"),
        ([b"a"], "a payload must be bytes or another buffer, not list"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_an_invalid_payload_is_a_usage_error_and_the_client_stays_usable(payload: Any, line: str) -> None:
    async with open_server("tcp://127.0.0.1:0") as server, await connect(server.addresses[0]) as client:
        with pytest.raises(UsageError, match=f"^{line}$"):
            await client.exchange(payload)
        assert await client.exchange(b"fine") == b"fine"


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("item", ["text", None, 5, [1, 2]], ids=lambda item: type(item).__name__)
@pytest.mark.by_turns("anyio_backend")
async def test_an_item_that_is_not_a_buffer_is_a_usage_error(item: Any, address: str) -> None:
    async with (
        open_server(address) as server,
        await connect(server.addresses[0], options=ConnectOptions(timeout=5)) as client,
    ):
        line = f"^an item to send must be bytes or another buffer, not {type(item).__name__}"
        with pytest.raises(UsageError, match=line):
            await send_all(client, [b"first", item])


class Numbered:
    """Iterable only by `__getitem__`, like old sequences."""

    def __getitem__(self, index: int) -> bytes:
        if index == 3:
            raise IndexError
        return b"%d" % index


async def agenerate() -> AsyncIterator[bytes]:
    for word in (b"a", b"", b"c"):
        yield word


SOURCES: dict[str, tuple[Callable[[], Any], list[bytes]]] = {
    "list": (lambda: [b"a", b"", b"c"], [b"a", b"", b"c"]),
    "tuple": (lambda: (b"a",), [b"a"]),
    "generator": (lambda: (bytes([byte]) for byte in b"abc"), [b"a", b"b", b"c"]),
    "async generator": (agenerate, [b"a", b"", b"c"]),
    "keys": (lambda: {b"a": 1, b"b": 2}, [b"a", b"b"]),
    "map": (lambda: map(str.encode, "abc"), [b"a", b"b", b"c"]),
    "sequence by index": (Numbered, [b"0", b"1", b"2"]),
    "empty": (lambda: [], []),
}


@pytest.mark.parametrize("kind", SOURCES)
async def test_any_iterable_is_a_source(kind: str) -> None:
    make, items = SOURCES[kind]
    assert [item async for item in items_of(make())] == items
    async with open_server("tcp://127.0.0.1:0") as server, await connect(server.addresses[0]) as client:
        assert await send_all(client, make()) == b"".join(items)


async def test_a_mapped_file_can_be_closed_after_it_was_sent(tmp_path: Path) -> None:
    """No view is kept: closing an mmap with exported views raises BufferError."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10_000)
    async with open_server("tcp://127.0.0.1:0") as server, await connect(server.addresses[0]) as client:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            assert await client.exchange(memory) == b"x" * 10_000
