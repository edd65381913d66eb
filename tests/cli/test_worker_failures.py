"""Failures of real workers and of their supervisor: killed, stopped, stuck, out of memory, broken."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.closed_loop import closed_loop
from tests.support.peers import dial, exchange
from tests.support.process import (
    Process,
    Processes,
    accepts,
    descendants,
    descriptors,
    is_alive,
    round_trip,
    wait_until,
)

pytestmark = pytest.mark.slow

TCP = "tcp://127.0.0.1:0"

#: Handlers in a module of the working directory, by what they do.
HANDLERS = """
import time

async def harmful(stream):
    async for message in stream:
        if message == b"block":
            await stream.send(message)
            time.sleep(3600)
        if message == b"allocate":
            kept = [bytearray(1 << 24) for _ in range(1 << 20)]
        await stream.send(message)
"""


def spread(process: Process, opened: ExitStack) -> dict[int, list[socket.socket]]:
    """Connect until each of two workers has connections; return them by worker."""
    held: dict[int, list[socket.socket]] = {}
    workers = descendants(process.pid)

    def is_spread() -> bool:
        before = {pid: descriptors(pid) for pid in workers}
        sock = opened.enter_context(dial(process.addresses[0]))
        assert exchange(sock, b"hello") == b"hello"
        holder = max(workers, key=lambda pid: descriptors(pid) - before[pid])
        held.setdefault(holder, []).append(sock)
        return len(held) == 2

    wait_until(is_spread)
    return held


@pytest.mark.fault(row=14, injected="kill -9 of a worker with connections")
def test_only_connections_of_a_killed_worker_end(processes: Processes, backend: str, opened: ExitStack) -> None:
    process = processes.serve("-b", TCP, "--backend", backend, "--workers", "2")
    held = spread(process, opened)
    killed, other = held
    os.kill(killed, signal.SIGKILL)
    process.read_errors(until="it was ended by signal 9: starting another in 100ms\n")

    assert [sock.recv(1) for sock in held[killed]] == [b""] * len(held[killed])
    for sock in held[other]:
        assert exchange(sock, b"still") == b"still"
    wait_until(lambda: len(descendants(process.pid)) == 2)
    assert accepts(process.addresses[0])
    opened.close()  # else the grace period passes
    process.signal()
    assert process.wait() == 0


@pytest.mark.fault(row=14, injected="kill -9 of a worker under load")
@pytest.mark.by_turns("backend")
def test_clients_lose_at_most_the_connections_of_a_killed_worker(processes: Processes, backend: str) -> None:
    process = processes.serve("-b", TCP, "--backend", backend, "--workers", "2")
    with closed_loop(process.addresses[0]) as loop:
        loop.wait_for(100)
        os.kill(descendants(process.pid)[0], signal.SIGKILL)
        wait_until(lambda: len(descendants(process.pid)) == 2)
        loop.wait_for(200)

    assert len(loop.failures) <= 16, loop.failures


@pytest.mark.fault(row=14, injected="SIGSTOP of a worker")
@pytest.mark.by_turns("backend")
def test_a_stopped_worker_is_replaced_and_another_one_serves(
    processes: Processes, backend: str, opened: ExitStack
) -> None:
    process = processes.serve("-b", TCP, "--backend", backend, "--workers", "2", "--heartbeat-timeout", "5s")
    held = spread(process, opened)
    stopped, other = held
    os.kill(stopped, signal.SIGSTOP)
    for sock in held[other]:
        assert exchange(sock, b"still") == b"still"
    process.read_errors(until="its event loop was stuck for 5 s: starting another in 100ms\n")
    wait_until(lambda: len(descendants(process.pid)) == 2 and stopped not in descendants(process.pid))
    assert not is_alive(stopped)


@pytest.mark.fault(row=16, injected="kill -9 of the supervisor")
@pytest.mark.parametrize("load", ["connected", "stuck"])
@pytest.mark.by_turns("load")
def test_workers_end_with_their_supervisor(
    processes: Processes, backend: str, opened: ExitStack, load: str, tmp_path: Path
) -> None:
    arguments = ("-b", TCP, "--backend", backend, "--workers", "2", "--graceful-timeout", "1h")
    handler = ("--handler", "harmful_handlers:harmful") if load == "stuck" else ()
    process = processes.serve(*arguments, *handler, env=module(tmp_path))
    workers = descendants(process.pid)
    if load == "connected":
        spread(process, opened)
    if load == "stuck":
        sock = opened.enter_context(dial(process.addresses[0]))
        assert exchange(sock, b"hello") == b"hello"
        assert exchange(sock, b"block") == b"block"
    process.signal(signal.SIGKILL)
    # One second is promised; a busy machine needs more.
    wait_until(lambda: not any(map(is_alive, workers)), timeout=3.0)
    assert not accepts(process.addresses[0])


def module(directory: Path, source: str = HANDLERS) -> dict[str, str]:
    """Write a module; return the environment for a process that imports it."""
    (directory / "harmful_handlers.py").write_text(source)
    return os.environ | {"PYTHONPATH": str(directory)}


@pytest.mark.fault(row=14, injected="a worker dies while it imports the handler")
@pytest.mark.by_turns("backend")
def test_a_worker_that_dies_at_the_start_stops_the_service(
    processes: Processes, backend: str, tmp_path: Path
) -> None:
    environ = module(tmp_path, "import os; os._exit(9)")
    arguments = ("serve", "-b", TCP, "--backend", backend, "--workers", "2", "--handler", "harmful_handlers:echo")
    status, output, errors = processes.run(*arguments, env=environ)
    assert (status, output) == (3, b"")
    assert errors in {f"anyecho: worker {number} cannot start: it ended with status 9\n" for number in (1, 2)}


@pytest.mark.by_turns("backend")
def test_the_error_of_a_worker_at_the_start_is_that_of_the_service(processes: Processes, backend: str) -> None:
    arguments = ("serve", "-b", TCP, "--backend", backend, "--workers", "2", "--handler", "absent_module:echo")
    status, output, errors = processes.run(*arguments)
    assert (status, output) == (2, b"")
    [line] = errors.splitlines()
    assert line.startswith("anyecho: worker ")
    assert line.endswith(
        " cannot start: --handler 'absent_module:echo': cannot import 'absent_module': "
        "ModuleNotFoundError: No module named 'absent_module'"
    )


@pytest.mark.by_turns("backend")
def test_sigterm_while_the_workers_start_ends_them(processes: Processes, backend: str, tmp_path: Path) -> None:
    environ = module(tmp_path, "import os, time; os.write(2, b'importing\\n'); time.sleep(3600)")
    arguments = ("-b", TCP, "--backend", backend, "--workers", "2", "--handler", "harmful_handlers:echo")
    process = processes.start("serve", *arguments, env=environ)
    process.read_errors(until="importing\n")
    workers = descendants(process.pid)
    process.signal()
    assert process.wait() == 0
    assert not any(map(is_alive, workers))


def test_a_sighup_while_the_workers_start_is_a_roll_after_the_start(processes: Processes, tmp_path: Path) -> None:
    wait = "import os, time; os.write(2, b'importing\\n')\nwhile not os.path.exists('go'): time.sleep(.01)"
    arguments = ("-b", TCP, "--workers", "1", "--handler", "harmful_handlers:harmful", "--log-level", "info")
    process = processes.start("serve", *arguments, env=module(tmp_path, wait + HANDLERS), cwd=tmp_path)
    process.read_errors(until="importing\n")
    process.signal(signal.SIGHUP)
    wait_until(lambda: has_no_pending_signal(process.pid))
    (tmp_path / "go").touch()
    process.read_errors(until="all workers are replaced\n")


def test_a_worker_that_can_no_longer_start_is_tried_again(processes: Processes, tmp_path: Path) -> None:
    environ = module(tmp_path)
    process = processes.serve(
        "-b", TCP, "--workers", "2", "--handler", "harmful_handlers:harmful", "--log-level", "info", env=environ
    )
    killed, _ = descendants(process.pid)
    module(tmp_path, "raise ValueError('broken')")
    os.kill(killed, signal.SIGKILL)
    process.read_errors(until="cannot import 'harmful_handlers': ValueError: broken: starting another in")
    assert round_trip(process.addresses[0], b"hello") == b"hello"
    module(tmp_path)
    process.read_errors(until=" is process ")
    process.signal()
    assert process.wait() == 0


@pytest.mark.fault(row=29, injected="a handler blocks the event loop of a worker")
def test_a_worker_with_a_stuck_event_loop_is_replaced(
    processes: Processes, backend: str, tmp_path: Path, opened: ExitStack
) -> None:
    arguments = ("--workers", "2", "--handler", "harmful_handlers:harmful", "--heartbeat-timeout", "5s")
    process = processes.serve("-b", TCP, "--backend", backend, *arguments, env=module(tmp_path))
    held = spread(process, opened)
    stuck, other = held
    held[stuck][0].sendall(b"block")
    for sock in held[other]:
        assert exchange(sock, b"still") == b"still"
    process.read_errors(until="its event loop was stuck for 5 s: starting another in 100ms\n")
    wait_until(lambda: len(descendants(process.pid)) == 2)
    assert accepts(process.addresses[0])


@pytest.mark.fault(row=30, injected="a handler allocates all memory of its worker")
def test_other_workers_serve_on_when_one_runs_out_of_memory(
    processes: Processes, backend: str, tmp_path: Path, opened: ExitStack
) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))\n"
    arguments = ("--workers", "2", "--handler", "harmful_handlers:harmful", "--backend", backend)
    process = processes.serve("-b", TCP, *arguments, env=module(tmp_path), before=limit)
    held = spread(process, opened)
    greedy, other = held
    held[greedy][0].sendall(b"allocate")
    assert held[greedy][0].recv(1) == b""
    for sock in held[other]:
        assert exchange(sock, b"still") == b"still"
    wait_until(lambda: len(descendants(process.pid)) == 2)
    assert round_trip(process.addresses[0], b"hello") == b"hello"


@pytest.mark.by_turns("backend")
def test_the_third_signal_kills_workers_with_stuck_loops(
    processes: Processes, backend: str, opened: ExitStack, tmp_path: Path
) -> None:
    """Otherwise they hold the sockets, and the service cannot be started again."""
    arguments = ("-b", TCP, "--backend", backend, "--workers", "1", "--handler", "harmful_handlers:harmful")
    process = processes.serve(*arguments, env=module(tmp_path))
    worker = descendants(process.pid)[0]
    sock = opened.enter_context(dial(process.addresses[0]))
    assert exchange(sock, b"hello") == b"hello"
    sock.sendall(b"block")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        process.signal(number)
        wait_until(lambda: has_no_pending_signal(process.pid))  # or two equal ones are one

    assert process.wait() == 0
    assert not is_alive(worker)


def has_no_pending_signal(pid: int) -> bool:
    return "ShdPnd:\t0000000000000000" in Path(f"/proc/{pid}/status").read_text()
