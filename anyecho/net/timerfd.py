"""A timerfd: in `os` from Python 3.13, before that through ctypes. Linux only.

Raises `ImportError` or `AttributeError`, at the latest when a `TimerFD` is made, if there is none.
"""

from __future__ import annotations

__all__ = ("TimerFD",)

import os
import sys
import time

_TFD_TIMER_ABSTIME = 1
_SECOND = 1_000_000_000

if sys.version_info >= (3, 13):

    class TimerFD:
        """A descriptor that is readable once `time.perf_counter_ns` has reached the time of `set`."""

        def __init__(self) -> None:
            self.descriptor = os.timerfd_create(time.CLOCK_MONOTONIC, flags=os.TFD_NONBLOCK | os.TFD_CLOEXEC)

        def set(self, when: int) -> None:
            """Be readable at `when`, in nanoseconds, and not before. A time in the past is now."""
            # A time of 0 would disarm the timer.
            os.timerfd_settime_ns(self.descriptor, flags=_TFD_TIMER_ABSTIME, initial=max(when, 1))

        def close(self) -> None:
            os.close(self.descriptor)

else:
    import ctypes
    from typing import Any

    class _ItimerSpec(ctypes.Structure):
        _fields_ = tuple((name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns"))

    def _function(name: str, *argtypes: Any) -> Any:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
        function.argtypes = argtypes
        return function

    def _check(result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    class TimerFD:
        """A descriptor that is readable once `time.perf_counter_ns` has reached the time of `set`."""

        def __init__(self) -> None:
            create = _function("timerfd_create", ctypes.c_int, ctypes.c_int)
            self._settime: Any = _function(
                "timerfd_settime", ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p
            )
            self._spec: Any = _ItimerSpec()
            self._address = ctypes.addressof(self._spec)
            # TFD_NONBLOCK and TFD_CLOEXEC are equal to these flags.
            self.descriptor = _check(create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))

        def set(self, when: int) -> None:
            """Be readable at `when`, in nanoseconds, and not before. A time in the past is now."""
            # A time of 0 would disarm the timer.
            self._spec.value_s, self._spec.value_ns = divmod(max(when, 1), _SECOND)
            _check(self._settime(self.descriptor, _TFD_TIMER_ABSTIME, self._address, None))

        def close(self) -> None:
            os.close(self.descriptor)
