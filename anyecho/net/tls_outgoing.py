"""What a TLS session has to send, in order, and how much of it was sent.

It knows no handshake and encrypts nothing: `Records` does.
"""

from __future__ import annotations

__all__ = ("Outgoing",)

import ssl
from collections.abc import Callable


class Outgoing:
    """Encrypted bytes are pending until `flush` or `take` removes them. Plaintext can be held before that."""

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
        #: Taken out of the BIO, which cannot be looked into, and not yet sent.
        self._rest: bytes | memoryview = b""
        #: Plaintext that cannot be encrypted yet. Sessions that never hold any are the rule, hence no deque.
        self._held: list[bytes | memoryview] = []
        #: Bytes of plaintext given to `Records.send`; and those of them that are held.
        self.plaintext_queued = 0
        self.plaintext_held = 0
        #: Bytes of the network sent.
        self.wire_bytes_sent = 0
        #: Bytes of plaintext encrypted when nothing was pending for the last time.
        self._plaintext_flushed = 0

    @property
    def wire_bytes_pending(self) -> int:
        """How many bytes are pending."""
        return len(self._rest) + self._outgoing.pending

    @property
    def plaintext_sent(self) -> int:
        """Bytes of plaintext sent, as far as can be told: what is pending of it has headers as well."""
        return max(self._plaintext_flushed, self.plaintext_queued - self.plaintext_held - self.wire_bytes_pending)

    def hold(self, item: bytes | memoryview) -> None:
        """Keep a copy of `item` until it is released."""
        self._held.append(bytes(item))
        self.plaintext_held += len(item)

    def release(self, encrypt: Callable[[bytes | memoryview], int]) -> None:
        """Give `encrypt` the oldest held item; keep what it did not take, all of it if it raises."""
        item = self._held[0]
        count = encrypt(item)
        self.plaintext_held -= count
        self._held[:1] = [memoryview(item)[count:]] if count < len(item) else []

    def take(self) -> bytes:
        """All that is pending, and is not any more."""
        rest = bytes(self._rest) + self._outgoing.read()
        self._rest = b""
        self.wire_bytes_sent += len(rest)
        self._plaintext_flushed = self.plaintext_queued - self.plaintext_held
        return rest

    def flush(self, send: Callable[[bytes | memoryview], int]) -> bool:
        """Give `send` all that is pending, once, which returns how much it took; return whether that was all."""
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
