"""The send queue of a TLS session: encrypted bytes in order, and counts of what was sent.

Encryption and the handshake are in `Records`.
"""

from __future__ import annotations

__all__ = ("Outgoing",)

import ssl
from collections.abc import Callable


class Outgoing:
    """Encrypted bytes are pending until `flush` or `take` removes them. Plaintext may be held unencrypted."""

    __slots__ = ("_outgoing", "_rest", "held", "plaintext_flushed", "plaintext_queued")

    def __init__(self) -> None:
        self._outgoing = ssl.MemoryBIO()
        #: Read from the BIO and not yet sent: a BIO cannot be read without being emptied.
        self._rest: bytes | memoryview = b""
        #: Plaintext that cannot be encrypted yet. Few sessions ever hold any.
        self.held = b""
        #: Number of plaintext bytes passed to `Records.send`. The last of them may be held.
        self.plaintext_queued = 0
        #: Number of plaintext bytes encrypted when `wire_bytes_pending` was last zero.
        self.plaintext_flushed = 0

    @property
    def wire_bytes_pending(self) -> int:
        """Number of encrypted bytes not yet sent."""
        return len(self._rest) + self._outgoing.pending

    @property
    def plaintext_sent(self) -> int:
        """Lower bound of the plaintext bytes sent: record headers among the pending bytes count as plaintext."""
        encrypted = self.plaintext_queued - len(self.held)
        return max(self.plaintext_flushed, encrypted - self.wire_bytes_pending)

    def take(self) -> bytes:
        """Remove all pending bytes and return them. Their plaintext counts as sent."""
        rest = bytes(self._rest) + self._outgoing.read()
        self._rest = b""
        self.plaintext_flushed = self.plaintext_queued - len(self.held)
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
        if count < len(rest):
            self._rest = memoryview(rest)[count:]
            return False

        self._rest = b""
        self.plaintext_flushed = self.plaintext_queued - len(self.held)
        return True
