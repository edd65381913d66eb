"""The cost of the fixture ``echo_server``: milliseconds to start and end a server, beyond those of its event loop.

``python benchmarks/fixtures.py [--rounds 100]`` prints medians. A round starts and ends an event loop of each
backend in a thread, and then a server in such a thread.
"""

from __future__ import annotations

import argparse
import time
from contextlib import AbstractContextManager
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
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
