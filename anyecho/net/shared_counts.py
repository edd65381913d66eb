"""Counts in memory that processes share: each process writes its own row, and reads all rows.

A row is a flag, which the parent process sets while the row counts, and a number: aligned words, without a lock.
"""

from __future__ import annotations

__all__ = ("Row", "SharedCounts")

import mmap
import os
import tempfile

_WORDS = 2
_SIZE = 4 * _WORDS


class SharedCounts:
    """`rows` rows in the file `descriptor`, which a child process inherits. It owns the descriptor."""

    def __init__(self, descriptor: int, rows: int) -> None:
        self.descriptor = descriptor
        self.rows = rows
        self._memory = mmap.mmap(descriptor, rows * _SIZE)
        self.words = memoryview(self._memory).cast("i")
        self._free = list(range(rows))

    @classmethod
    def create(cls, rows: int) -> SharedCounts:
        """Return rows that are all free. Raises `OSError`."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("anyecho-counts")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        try:
            os.truncate(descriptor, rows * _SIZE)
            return cls(descriptor, rows)
        except BaseException:
            os.close(descriptor)
            raise

    def take_row(self) -> Row | None:
        """Return an inactive row that no process has, with a count of 0; None if there is none."""
        if not self._free:
            return None

        row = Row(self, self._free.pop())
        row.publish(0)  # the process that had it before may have been killed
        return row

    def give_back(self, row: Row) -> None:
        """Free the row of a process that has ended."""
        row.deactivate()
        self._free.append(row.number)

    def close(self) -> None:
        self.words.release()
        self._memory.close()
        os.close(self.descriptor)


class Row:
    """The row of one process."""

    def __init__(self, counts: SharedCounts, number: int) -> None:
        self.counts = counts
        self.number = number

    def activate(self) -> None:
        self.counts.words[_WORDS * self.number] = 1

    def deactivate(self) -> None:
        self.counts.words[_WORDS * self.number] = 0

    def publish(self, count: int) -> None:
        """Write the count, for the other processes."""
        self.counts.words[_WORDS * self.number + 1] = count

    def least_other(self) -> int | None:
        """Return the least count of all other active rows; None if there is none, or this one is not active."""
        words, own = self.counts.words, _WORDS * self.number
        if not words[own]:
            return None

        others = (words[at + 1] for at in range(0, len(words), _WORDS) if words[at] and at != own)
        return min(others, default=None)
