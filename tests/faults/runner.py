"""Run the registered scenarios, here or in their own network namespace; return what was observed."""

from __future__ import annotations

__all__ = ("SCENARIOS", "format_observed", "inject", "opened_scene")

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest

from anyecho.backends import Backend
from anyecho.net import poller
from tests.faults.table import SCENARIOS, Observed, Scenario, Scene
from tests.support.machine import network_namespace, short_directory
from tests.support.process import TIMEOUT, Processes

_THEMES = (
    *("accept", "bugs", "peers", "slowloris", "resets", "bytes", "proxy", "start", "udp", "signals", "gone"),
    *("races", "systemd", "tls", "certificates"),
)
for _theme in _THEMES:
    _module = f"tests.faults.rows_{_theme}"
    pytest.register_assert_rewrite(_module)
    import_module(_module)

#: The loopback interface of a new network namespace is down.
_LOOPBACK_UP = "link set lo up"


@contextmanager
def opened_scene(backend: Backend) -> Iterator[Scene]:
    """Yield a new scene; its processes end with the block."""
    processes = Processes(fallback=not poller.has_epoll())
    with short_directory() as directory:
        try:
            yield Scene(backend, processes, Path(directory))
        finally:
            processes.close()


def inject(scenario: Scenario, backend: Backend, *, alone: bool = False) -> Observed:
    """Run `scenario`; return what was observed. Raises pytest's skip where it cannot be run.

    A scenario that needs its own network runs in a namespace, unless this process is `alone` in one.
    """
    if scenario.alone and not alone:
        return _inject_alone(scenario, backend)

    with opened_scene(backend) as scene:
        return scenario.run(scene)


def _inject_alone(scenario: Scenario, backend: Backend) -> Observed:
    fallback = [] if poller.has_epoll() else ["--fallback"]
    run = [sys.executable, "-m", "tests.faults", "--alone", scenario.name, "--backend", backend, *fallback]
    command = [*network_namespace(_LOOPBACK_UP), *run]
    ended = subprocess.run(command, capture_output=True, timeout=2 * TIMEOUT, text=True)
    assert ended.returncode == 0, ended.stderr
    observed: dict[str, object] = json.loads(ended.stdout)
    return observed


def format_observed(observed: Observed) -> str:
    return "; ".join(f"{what}: {value}" for what, value in observed.items())
