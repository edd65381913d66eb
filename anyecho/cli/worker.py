"""A worker of ``anyecho serve --workers``: the job comes over the lifeline, and an error goes back over it."""

from __future__ import annotations

__all__ = ("run_worker",)

from collections.abc import Sequence
from dataclasses import asdict

from anyecho.address import Address
from anyecho.cli.environment import Environment
from anyecho.cli.job import Job
from anyecho.cli.serving import run_server
from anyecho.errors import AnyechoError, UsageError
from anyecho.net.lifeline import inherit_lifeline
from anyecho.server.supervised import ORPHAN_LIMIT
from anyecho.server.worker import Failure
from anyecho.systemd.activation import Activation

#: Seconds within which a supervisor sends the job, right after the start of the process.
_JOB_WITHIN = 30.0
#: Seconds until a worker with a stuck event loop is gone, after the end of the supervisor.
_STUCK_LIMIT = ORPHAN_LIMIT + 0.2


def run_worker(descriptor: int, addresses: Sequence[Address], environment: Environment) -> int:
    """Serve `addresses` until the supervisor at the other end of `descriptor` ends it; return the exit status."""
    lifeline = inherit_lifeline(descriptor)
    message = lifeline.receive_first(_JOB_WITHIN)
    if message is None:  # the supervisor is gone
        return 0

    lifeline.exit_after_end(_STUCK_LIMIT)
    try:
        job = Job.from_message(message)
        environment.used = job.options.from_environment
        environment.options_reported = False
        run_server(addresses, Activation(), job, environment, lifeline)
    except (AnyechoError, OSError) as exc:
        options = exc.options if isinstance(exc, AnyechoError) else ()
        failure = Failure(text=str(exc), options=options, is_usage=isinstance(exc, UsageError))
        if not lifeline.send({"failed": asdict(failure)}):
            raise
        return 1

    return 0
