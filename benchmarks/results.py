"""What a run has found so far, where and with what: every value of every round, as JSON."""

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
    #: (workload, server): what it did.
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, workload: str, server: str, figures: Figures) -> None:
        kept = self.values.setdefault(workload, {}).setdefault(server, {})
        for key, value in figures.items():
            kept.setdefault(key, []).append(value)

    def fail(self, workload: str, server: str, why: str) -> None:
        """A server that failed once has no figure: of what else it did nobody knows whether it was an echo."""
        self.failures[workload, server] = why
        self.values.get(workload, {}).pop(server, None)

    def has_failed(self, workload: str, server: str) -> bool:
        return (workload, server) in self.failures

    def of(self, workload: str, server: str, key: str) -> list[float]:
        """The values of all rounds; none, if it was not measured."""
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
    # Where its parts lie on this machine is nobody's business.
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
