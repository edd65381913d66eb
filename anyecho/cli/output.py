"""Lines on standard output that do not stop the event loop while their reader is slow."""

from __future__ import annotations

__all__ = ("Output",)

from collections.abc import Iterable

from anyio import Event

from anyecho.errors import LocalError
from anyecho.net.descriptors import write_some
from anyecho.net.threads import write_in_thread

#: Bytes kept before `room` waits.
_ROOM = 1 << 16


class Output:
    """Writes at once what the descriptor takes; `run`, in a task, writes the rest in a thread."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._rest = b""
        self._is_closing = False
        self._changed = Event()
        self._has_closed = Event()

    def write(self, lines: Iterable[str]) -> None:
        """Write each line; what the descriptor does not take is kept. Raises `LocalError`."""
        text = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
        if text and not self._rest:
            try:
                text = text[write_some(self._descriptor, text) :]
            except OSError as exc:
                raise _local_error(exc) from exc
        if text:
            self._rest += text
            self._notify()

    async def room(self) -> None:
        """Wait while more than 64 KiB are kept."""
        while len(self._rest) > _ROOM:
            await self._changed.wait()

    async def run(self) -> None:
        """Write what is kept, until `aclose` and then the last byte. Raises `LocalError`."""
        while True:
            while piece := self._rest:
                try:
                    await write_in_thread(self._descriptor, piece)
                except OSError as exc:
                    raise _local_error(exc) from exc
                self._rest = self._rest[len(piece) :]
                self._notify()
            if self._is_closing:
                self._has_closed.set()
                return
            await self._changed.wait()

    async def aclose(self) -> None:
        """Let `run` end, and return once all is written."""
        self._is_closing = True
        self._notify()
        await self._has_closed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = Event()


def _local_error(exc: OSError) -> LocalError:
    return LocalError(f"cannot write to standard output: {exc.strerror}")
