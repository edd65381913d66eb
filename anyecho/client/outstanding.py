"""Bytes of a stream that wait for their echo, and their comparison with what comes back."""

from __future__ import annotations

__all__ = ("OutstandingBytes",)

from collections import deque


class OutstandingBytes:
    """Bytes that were sent and are not back, in their order. True while there are any.

    * `sent`: the bytes sent so far; `returned`: those of them that came back equal.
    """

    __slots__ = ("_head_returned", "_writes", "returned", "sent")

    def __init__(self) -> None:
        self._writes: deque[bytes] = deque()
        #: How many bytes of the first of `_writes` are back.
        self._head_returned = 0
        self.sent = 0
        self.returned = 0

    def __len__(self) -> int:
        return self.sent - self.returned

    @property
    def next_byte(self) -> int | None:
        """The byte that has to come back next; None if none is outstanding."""
        return self._writes[0][self._head_returned] if self._writes else None

    def expect(self, data: bytes) -> None:
        """Add `data`, which is not empty, as it is sent."""
        self._writes.append(data)
        self.sent += len(data)

    def match(self, chunk: bytes) -> int:
        """Compare `chunk` with the outstanding bytes and remove the equal ones. Return how many are equal."""
        good = 0
        while good < len(chunk) and self._writes:
            expected = self._writes[0][self._head_returned : self._head_returned + len(chunk) - good]
            back = chunk[good : good + len(expected)]
            equal = len(back) if back == expected else next(i for i, b in enumerate(back) if b != expected[i])
            good += equal
            self._head_returned += equal
            if self._head_returned == len(self._writes[0]):
                self._writes.popleft()
                self._head_returned = 0
            if equal < len(back):
                break

        self.returned += good
        return good
