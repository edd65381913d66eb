"""The machine of a measurement: what it is, and how busy it was with other work."""

from __future__ import annotations

__all__ = ("MachineState", "library_versions")

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from anyecho.measure.result import Machine

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_LIBRARIES = ("anyio", "trio", "uvloop", "hdrhistogram")


@dataclass(frozen=True)
class MachineState:
    """Load averages and stolen time before the runs."""

    load: tuple[float, ...]
    #: Seconds that a hypervisor has taken from all cores since the boot; None if the system does not say.
    stolen: float | None

    @classmethod
    def now(cls) -> MachineState:
        return cls(_load_average(), _stolen())

    def until_now(self) -> Machine:
        """Return the machine, with its state then and now."""
        stolen = _stolen()
        return Machine(
            system=f"{platform.system()} {platform.release()}",
            processor=_processor(),
            cores=os.cpu_count() or 0,
            governor=_read(_GOVERNOR).strip(),
            load_before=self.load,
            load_after=_load_average(),
            steal=None if stolen is None or self.stolen is None else max(stolen - self.stolen, 0.0),
        )


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries that a measurement depends on."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)

    return versions


def _load_average() -> tuple[float, ...]:
    with suppress(OSError, AttributeError):
        return os.getloadavg()

    return ()


def _stolen() -> float | None:
    # proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal, in ticks.
    head = _read(Path("/proc/stat")).partition("\n")[0].split()
    return int(head[8]) / os.sysconf("SC_CLK_TCK") if len(head) > 8 else None


def _processor() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()

    return platform.processor() or platform.machine()


def _read(path: Path) -> str:
    with suppress(OSError, UnicodeError):
        return path.read_text()

    return ""
