"""The cost of the fixture ``echo_server``: milliseconds to start and end a server, beyond those of its event loop.

``python benchmarks/fixtures.py [--rounds 100]`` prints medians. A round starts and ends an event loop of each
backend in a thread, and then a server in such a thread.

``python benchmarks/fixtures.py --imports [--rounds 5]`` prints medians of what the import of the server costs once
in a run: pytest rewrites the assertions of all modules of a package that has a plugin. Install anyecho from a
wheel: pytest does not find the modules of an editable installation.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import Any

from anyio.from_thread import start_blocking_portal

from anyecho import BACKENDS, Backend, threaded_server


def loop(backend: Backend) -> AbstractContextManager[Any]:
    if backend == "uvloop":
        return start_blocking_portal("asyncio", {"use_uvloop": True})

    return start_blocking_portal(backend)


def server(backend: Backend) -> AbstractContextManager[Any]:
    return threaded_server(backend=backend)


def milliseconds(context: AbstractContextManager[Any]) -> float:
    began = time.perf_counter()
    with context:
        pass
    return (time.perf_counter() - began) * 1000


IMPORT = """
import time


def test_import():
    began = time.process_time()
    import anyecho.threaded
    with open("seconds", "w") as file:
        print(time.process_time() - began, file=file)
"""
IN_PYTHON, IN_PYTEST = ("-c", "import test_import; test_import.test_import()"), ("-m", "pytest", "-q")
#: In this order: the first run of pytest that may write them finds no rewritten modules.
IMPORTS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "without pytest": (IN_PYTHON, {}),
    "in each run with PYTHONDONTWRITEBYTECODE": (IN_PYTEST, {"PYTHONDONTWRITEBYTECODE": "1"}),
    "in the first run": (IN_PYTEST, {}),
    "in later runs": (IN_PYTEST, {}),
}


def import_seconds(directory: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> float:
    """Return the processor time of the import in a process that keeps compiled modules in `directory`."""
    subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env={
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(directory / "cache"),
            **environment,
        },
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return float((directory / "seconds").read_text())


def measure_imports(rounds: int) -> None:
    measured: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as path:
            directory = Path(path)
            (directory / "test_import.py").write_text(IMPORT)
            import_seconds(directory, IN_PYTHON, {})  # compiles all modules
            for name, (arguments, environment) in IMPORTS.items():
                measured[name].append(import_seconds(directory, arguments, environment))

    print("| import of the server | processor time, s |")
    print("| --- | ---: |")
    for name, seconds in measured.items():
        print(f"| {name} | {median(seconds):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--imports", action="store_true")
    arguments = parser.parse_args()
    if arguments.imports:
        measure_imports(arguments.rounds or 5)
    else:
        measure_servers(arguments.rounds or 100)


def measure_servers(rounds: int) -> None:
    measured: dict[tuple[Backend, str], list[float]] = {}
    for number in range(rounds + 1):
        for backend in BACKENDS:
            for name, start in (("loop", loop), ("server", server)):
                value = milliseconds(start(backend))
                if number:  # the first round imports the backends
                    measured.setdefault((backend, name), []).append(value)

    print("| backend | event loop, ms | server, ms | beyond the loop, ms |")
    print("| --- | ---: | ---: | ---: |")
    for backend in BACKENDS:
        alone, served = (median(measured[backend, name]) for name in ("loop", "server"))
        print(f"| {backend} | {alone:.1f} | {served:.1f} | {served - alone:.1f} |")


if __name__ == "__main__":
    main()
