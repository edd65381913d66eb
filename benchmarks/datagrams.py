"""The CPU cost of an echoed datagram: ``python benchmarks/datagrams.py [ROUNDS [SECONDS]]`` (by default 7 of 1 s).

Every server runs alone, pinned to one core, and is loaded from the other by a program in C: 50 sockets, 64 bytes;
each sends again when its last datagram is back and equal. Every round measures all servers, in alternating order;
the table has medians, minima and maxima. The guards of anyecho are on, its rates off (``--udp-rate off``); "any" is
bound to every interface, and so has to learn the destination address of each datagram.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

HERE = Path(__file__)
SOCKETS = 50


class Protocol(asyncio.DatagramProtocol):
    """A plain echo protocol for asyncio or uvloop, without guards."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


async def serve_protocol() -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Protocol, local_addr=("127.0.0.1", 0))
    print(f"udp://127.0.0.1:{transport.get_extra_info('sockname')[1]}", flush=True)
    await loop.create_future()


def servers(program: str) -> dict[str, list[str]]:
    found = {"c": [program, "serve"]}
    for loop in ("asyncio", "uvloop"):
        found[f"{loop}-protocol"] = [sys.executable, str(HERE), loop]
    for bind, name in (("udp://127.0.0.1:0", "anyecho"), ("udp://:0", "anyecho-any")):
        for backend in ("asyncio", "uvloop", "trio"):
            found[f"{name}-{backend}"] = [
                *(sys.executable, "-m", "anyecho", "serve", "-b", bind),
                *("--backend", backend, "--udp-rate", "off"),
            ]

    return found


@contextmanager
def running(command: list[str]) -> Iterator[tuple[int, str]]:
    """Start a server on the first core; yield its process id and port."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {0})
    )
    assert process.stdout is not None
    with process.stdout:
        try:
            yield process.pid, process.stdout.readline().strip().rpartition(":")[2]
        finally:
            process.kill()
            process.wait()


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(program: str, port: str, seconds: float) -> int:
    command = [program, "load", port, str(SOCKETS), str(seconds)]
    ended = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, preexec_fn=lambda: os.sched_setaffinity(0, {1})
    )
    made, wrong = map(int, ended.stdout.split())
    assert not wrong, "not an echo"
    return made


def measure(program: str, command: list[str], seconds: float) -> tuple[float, float]:
    """Return the microseconds of CPU per datagram, and thousands of datagrams per second."""
    with running(command) as (pid, port):
        load(program, port, 0.2)  # warm
        before = processor_seconds(pid)
        made = load(program, port, seconds)
        return (processor_seconds(pid) - before) / made * 1e6, made / seconds / 1e3


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):6.1f} ({min(values):.1f}-{max(values):.1f})"


def main() -> None:
    rounds, seconds = (*map(float, sys.argv[1:3]), *(7.0, 1.0)[len(sys.argv[1:3]) :])
    with tempfile.TemporaryDirectory() as directory:
        program = f"{directory}/datagrams"
        subprocess.run(["cc", "-O2", "-o", program, HERE.with_suffix(".c")], check=True)
        commands = servers(program)
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for number in range(int(rounds)):
            for name in list(commands)[:: -1 if number % 2 else 1]:
                figures[name].append(measure(program, commands[name], seconds))

    print(f"{'':22}{'CPU us a datagram':26}{'1000 datagrams/s':26}")
    for name, values in figures.items():
        costs, speeds = map(list, zip(*values, strict=True))
        print(f"{name:22}{spread(costs):26}{spread(speeds):26}")


if __name__ == "__main__":
    if sys.argv[1:] in (["asyncio"], ["uvloop"]):
        (uvloop.run if sys.argv[1] == "uvloop" else asyncio.run)(serve_protocol())
    else:
        main()
