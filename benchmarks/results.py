"""The results of a run: every value of every round, the machine and the settings, as JSON."""

from __future__ import annotations

__all__ = ("Results",)

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from echoes import Figures
from servers import Server


@dataclass(kw_only=True)
class Results:
    servers: list[Server]
    settings: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=lambda: describe_machine())
    #: Workload, server, figure: a value for each round.
    values: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    #: (workload, server): why it failed.
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, workload: str, server: str, figures: Figures) -> None:
        kept = self.values.setdefault(workload, {}).setdefault(server, {})
        for key, value in figures.items():
            kept.setdefault(key, []).append(value)

    def fail(self, workload: str, server: str, why: str) -> None:
        """Discard all figures of a server that failed once: its other replies may have been wrong too."""
        self.failures[workload, server] = why
        self.values.get(workload, {}).pop(server, None)

    def has_failed(self, workload: str, server: str) -> bool:
        return (workload, server) in self.failures

    def of(self, workload: str, server: str, key: str) -> list[float]:
        """Return the values of all rounds, or an empty list if it was not measured."""
        return self.values.get(workload, {}).get(server, {}).get(key, [])

    def save(self, path: Path, targets: list[dict[str, Any]]) -> None:
        document = {
            "machine": self.machine,
            "settings": self.settings,
            "servers": [_describe_server(server) for server in self.servers],
            "values": self.values,
            "failures": [
                {"workload": workload, "server": server, "what": what}
                for (workload, server), what in self.failures.items()
            ],
            "targets": targets,
        }
        path.write_text(json.dumps(document, indent=1) + "\n")


def _describe_server(server: Server) -> dict[str, Any]:
    # Without the local paths of this machine.
    command = [Path(word).name if word.startswith("/") else word for word in server.command]
    return asdict(server) | {"command": command}


def describe_machine() -> dict[str, Any]:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }
