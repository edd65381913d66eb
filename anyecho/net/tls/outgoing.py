"""The send queue of a TLS session: encrypted bytes in order, and counts of what was sent.

Encryption and the handshake are in `Records`.
"""

from __future__ import annotations

__all__ = ("Outgoing",)

import ssl
from collections.abc import Callable


class Outgoing:
    """Encrypted bytes are pending until `flush` or `take` removes them. Plaintext may be held unencrypted."""

    __slots__ = (
        "_held",
        "_outgoing",
        "_plaintext_flushed",
        "_rest",
        "plaintext_held",
        "plaintext_queued",
        "wire_bytes_sent",
    )

    def __init__(self) -> None:
        self._outgoing = ssl.MemoryBIO()
        #: Read from the BIO and not yet sent: a BIO cannot be read without being emptied.
        self._rest: bytes | memoryview = b""
        #: Plaintext that cannot be encrypted yet, oldest first. Few sessions ever hold any, hence no deque.
        self._held: list[bytes | memoryview] = []
        #: Bytes of plaintext passed to `Records.send`, and how many of them are held.
        self.plaintext_queued = 0
        self.plaintext_held = 0
        #: Encrypted bytes that `flush` sent.
        self.wire_bytes_sent = 0
        #: Bytes of plaintext encrypted when `wire_bytes_pending` was last zero.
        self._plaintext_flushed = 0

    @property
    def wire_bytes_pending(self) -> int:
        """Number of encrypted bytes not yet sent."""
        return len(self._rest) + self._outgoing.pending

    @property
    def plaintext_sent(self) -> int:
        """Lower bound of the plaintext bytes sent: record headers among the pending bytes count as plaintext."""
        return max(self._plaintext_flushed, self.plaintext_queued - self.plaintext_held - self.wire_bytes_pending)

    def hold(self, item: bytes | memoryview) -> None:
        """Keep a copy of `item` until `release` encrypts it."""
        self._held.append(bytes(item))
        self.plaintext_held += len(item)

    def release(self, encrypt: Callable[[bytes | memoryview], int]) -> None:
        """Pass the oldest held item to `encrypt`, which returns how many bytes it took. Keep the rest.

        If `encrypt` raises, nothing is removed.
        """
        item = self._held[0]
        count = encrypt(item)
        self.plaintext_held -= count
        self._held[:1] = [memoryview(item)[count:]] if count < len(item) else []

    def take(self) -> bytes:
        """Remove all pending bytes and return them. Their plaintext counts as sent."""
        rest = bytes(self._rest) + self._outgoing.read()
        self._rest = b""
        self._plaintext_flushed = self.plaintext_queued - self.plaintext_held
        return rest

    def flush(self, send: Callable[[bytes | memoryview], int]) -> bool:
        """Call `send` once with all pending bytes; it returns how many it took. Return whether none are left."""
        rest: bytes | memoryview = self._outgoing.read()
        if self._rest:
            rest = bytes(self._rest) + rest if rest else self._rest
        if not rest:
            return True

        self._rest = rest
        count = send(rest)
        self.wire_bytes_sent += count
        if count < len(rest):
            self._rest = memoryview(rest)[count:]
            return False

        self._rest = b""
        self._plaintext_flushed = self.plaintext_queued - self.plaintext_held
        return True
