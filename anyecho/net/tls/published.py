"""A file for other processes to read, which ends with this one: where the system has that, in memory."""

from __future__ import annotations

__all__ = ("PublishedFile",)

import os
import tempfile
from pathlib import Path

#: Descriptors of a process as files, for processes of the same user.
_DESCRIPTORS = Path("/proc/self/fd")


class PublishedFile:
    """A file with `data` at `path`, until `close` or the end of the process. Raises `OSError`."""

    def __init__(self, data: bytes, *, prefix: str, suffix: str) -> None:
        self._owner = os.getpid()
        self._is_temporary = not (hasattr(os, "memfd_create") and _DESCRIPTORS.is_dir())
        if self._is_temporary:
            self._descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=suffix)
        else:
            self._descriptor = os.memfd_create(f"{prefix}{suffix}")
            name = f"/proc/{self._owner}/fd/{self._descriptor}"
        self.path = Path(name)
        try:
            with open(self._descriptor, "wb", closefd=False) as file:
                file.write(data)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the file, unless this is a forked child of the process that made it. Idempotent."""
        if os.getpid() != self._owner or self._descriptor < 0:
            return
        if self._is_temporary:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1
