"""Options of several worker processes, and the part that each worker gets of the options of a server."""

from __future__ import annotations

__all__ = ("WorkerOptions", "divide")

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from random import Random

from anyecho.errors import UsageError
from anyecho.options import option, option_group
from anyecho.server.options import ServeOptions
from anyecho.units import Seconds
from anyecho.validation import check_types

#: More are a mistake.
_MAX = 1024
#: The control group of this process, and where the groups are, in the mount that systemd and containers use.
_CGROUP_OF_SELF, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
#: Seconds. A healthy worker on a busy machine was silent for 1.2 s.
_MIN_HEARTBEAT = 5.0


@option_group("Workers")
@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How many worker processes serve, and when one counts as stuck.

    Raises:
        UsageError: a value has the wrong type or is out of range, or an option lacks another one.
    """

    workers: str | None = option(
        None,
        "Serve with this many worker processes, which a supervisor restarts and replaces; auto: one per core.",
        metavar="N|auto",
        group="Options",
    )
    heartbeat_timeout: Seconds = option(
        30.0, "Replace a worker whose event loop is stuck for this long; at least 5 s."
    )

    reuseport: bool = option(
        False, "Give each worker its own TCP and UDP sockets, among which the kernel divides peers.", negative=()
    )

    def __post_init__(self) -> None:
        check_types(self)
        if self.heartbeat_timeout < _MIN_HEARTBEAT:
            text = f"heartbeat_timeout must be {_MIN_HEARTBEAT:g} or more seconds, not {self.heartbeat_timeout:g}"
            raise UsageError(text, options=("heartbeat_timeout",))
        for name in ("reuseport", "heartbeat_timeout"):
            if self.count is None and getattr(self, name) != getattr(WorkerOptions, name):
                raise UsageError(f"{name} needs workers", options=(name, "workers"))

    @property
    def count(self) -> int | None:
        """The number of workers; None: no supervisor. Raises `UsageError` if it is not one."""
        if self.workers is None:
            return None
        if self.workers == "auto":
            return _cores()
        if not re.fullmatch("[0-9]{1,9}", self.workers, re.A) or not 1 <= int(self.workers) <= _MAX:
            text = f"workers must be auto, or 1 to {_MAX}, not {self.workers[:40]!r}"
            raise UsageError(text, options=("workers",))

        return int(self.workers)


def _cores() -> int:
    """Return the number of cores that this process may use, by its affinity and the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _quota())


def _quota() -> int:
    """Return the cores in cpu.max (cgroups(7), version 2), rounded up; the most workers if there is no quota."""
    with suppress(OSError, ValueError):
        group = _CGROUP_OF_SELF.read_text().rpartition("0::/")[2].strip()
        quota, period = (_CGROUPS / group / "cpu.max").read_text().split()
        return ceil(int(quota) / int(period))

    return _MAX


def divide(options: ServeOptions, count: int) -> Iterator[ServeOptions]:
    """Yield the options of each of `count` workers.

    The connections, and the rate of UDP over all sources, are divided. The seed of a worker derives from the seed
    of the server and its number. Raises `UsageError` if there are fewer connections than workers.
    """
    if options.max_connections < count:
        text = f"max_connections must be at least the number of workers, {count}, not {options.max_connections}"
        raise UsageError(text, options=("max_connections",))

    for number in range(count):
        seed = None if options.seed is None else Random(f"{options.seed}/{number}").randrange(10**9)
        connections = len(range(number, options.max_connections, count))
        yield replace(options, max_connections=connections, seed=seed, processes=count)
