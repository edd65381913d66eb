"""Warnings of what peers can cause as often as they like: a line in ten seconds, which says how often it was."""

from __future__ import annotations

__all__ = ("ThrottledLog",)

import logging
import math
from time import monotonic

#: Seconds between two lines.
_EVERY = 10.0


class ThrottledLog:
    """Warns on `logger` of one kind of thing."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._logged_at = -math.inf
        self._unlogged = 0

    def warn(self, message: str, *args: object) -> None:
        """Log this one, and how many there were since the last line; or only count it."""
        self._unlogged += 1
        if monotonic() - self._logged_at >= _EVERY:
            self._logger.warning(f"{message} (%d times)", *args, self._unlogged)
            self._logged_at = monotonic()
            self._unlogged = 0
