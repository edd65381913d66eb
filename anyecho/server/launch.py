"""The start of a worker process.

What a worker serves is up to the command that starts it. The supervisor decides when one is started.
"""

from __future__ import annotations

__all__ = ("start_worker",)

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from anyio import open_process

from anyecho.net.lifeline import open_lifeline
from anyecho.net.shared_counts import SharedCounts
from anyecho.net.threads import NoThreadError
from anyecho.server.worker import CHECKS, Launch, Worker
from anyecho.systemd.notify import StateReceiver

#: Variables of the supervisor that a worker does not get: its options, its sockets, its service manager.
_OWN_VARIABLES = ("ANYECHO_", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_")


async def start_worker(launch: Launch, environ: Mapping[str, str], counts: SharedCounts | None = None) -> Worker:
    """Start a process; the caller runs `Worker.run`. It gets a row of `counts`. Raises `OSError`."""
    job, descriptors, row = dict(launch.job), [*launch.descriptors], None
    with ExitStack() as opened:
        if counts is not None and (row := counts.take_row()) is not None:
            opened.callback(counts.give_back, row)
            descriptors.append(counts.descriptor)
            job["shared_row"] = {"descriptor": counts.descriptor, "rows": counts.rows, "row": row.number}
        states = StateReceiver()
        opened.callback(states.close)
        lifeline, passed = open_lifeline()
        opened.callback(lifeline.close)
        with passed, _thread_errors():
            process = await open_process(
                [*launch.command, str(passed.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None,
                env=_environment(environ, states.address, launch.heartbeat_timeout),
                start_new_session=True,  # Ctrl-C on the terminal is for the supervisor
                pass_fds=(*descriptors, passed.fileno()),
            )
        opened.pop_all()

    states.pid = process.pid
    lifeline.send(job)
    return Worker(launch, process, lifeline, states, row)


@contextmanager
def _thread_errors() -> Iterator[None]:
    """Raise `NoThreadError` if no thread can be started: trio starts a process in one, asyncio waits for it."""
    try:
        yield
    except RuntimeError as exc:
        raise NoThreadError from exc


def _environment(environ: Mapping[str, str], notify_socket: str, heartbeat_timeout: float) -> dict[str, str]:
    kept = {name: value for name, value in environ.items() if not name.startswith(_OWN_VARIABLES)}
    # Half of this is the time between two heartbeats, by which a loop that is stuck seems to be stuck for longer.
    watchdog = str(int(heartbeat_timeout * 2e6 / CHECKS))
    return kept | {"NOTIFY_SOCKET": notify_socket, "WATCHDOG_USEC": watchdog}
