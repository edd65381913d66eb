"""A throttled log for warnings that peers can cause at will: at most one line in 10 s, with the count."""

from __future__ import annotations

__all__ = ("ThrottledLog",)

import logging
import math
from time import monotonic

#: Minimum seconds between two lines.
_INTERVAL = 10.0


class ThrottledLog:
    """Warnings of one kind on `logger`."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._logged_at = -math.inf
        self._unlogged = 0

    def warn(self, message: str, *args: object) -> None:
        """Log the warning with the count since the last line, or only count it."""
        self._unlogged += 1
        if monotonic() - self._logged_at >= _INTERVAL:
            self._logger.warning(f"{message} (%d times)", *args, self._unlogged)
            self._logged_at = monotonic()
            self._unlogged = 0
