"""A token bucket, and a throttled log for warnings that peers can cause at will."""

from __future__ import annotations

__all__ = ("ThrottledLog", "TokenBucket")

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


class TokenBucket:
    """A token bucket: at most `burst` tokens, refilled with `rate` a second."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._filled_at = -math.inf
        #: The caller refills, checks for at least 1 and subtracts it.
        self.tokens = burst

    def refill(self, now: float) -> None:
        if now > self._filled_at:
            self.tokens = min(self._burst, self.tokens + (now - self._filled_at) * self._rate)
            self._filled_at = now
