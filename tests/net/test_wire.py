"""A `PlainWire` is its socket."""

from __future__ import annotations

import pytest

from anyecho.net.wire import PlainWire, Wire
from tests.net.pairs import KINDS, raw_pair


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_wire_reads_and_writes_by_the_methods_of_its_socket(kind: str) -> None:
    left, right = raw_pair(kind)
    with left, right:
        left.setblocking(False)
        wire: Wire = PlainWire(left)
        assert (wire.read_into, wire.write) == (left.recv_into, left.send)
        assert wire.handshake()
        buffer = memoryview(bytearray(8))
        with pytest.raises(BlockingIOError):
            wire.read_into(buffer)

        assert wire.write(b"echo") == 4
        assert right.recv(8) == b"echo"
        right.sendall(b"ECHO")
        assert wire.read_into(buffer) == 4
        assert bytes(buffer[:4]) == b"ECHO"
        with pytest.raises(BlockingIOError):
            while True:
                wire.write(bytes(1 << 16))
        assert not wire.pending
        assert not wire.write_blocked
        assert wire.flush()


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_wire_half_closes(kind: str) -> None:
    left, right = raw_pair(kind)
    with left, right:
        wire = PlainWire(left)
        wire.shutdown()
        assert right.recv(8) == b""
        right.sendall(b"late")
        right.close()
        buffer = memoryview(bytearray(8))
        assert wire.read_into(buffer) == 4
        assert wire.read_into(buffer) == 0
        assert not wire.has_input
