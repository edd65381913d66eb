"""What ``anyecho serve`` runs, besides its addresses: from flags, or from the message that a worker receives."""

from __future__ import annotations

__all__ = ("Job", "ServiceOptions")

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from anyecho.address import Address
from anyecho.backends import Backend
from anyecho.cli.flags import build_options, given_flags, whole_number
from anyecho.cli.handler import find_handler
from anyecho.cli.logs import AccessLog, LogOptions
from anyecho.codec import encode
from anyecho.errors import UsageError
from anyecho.handlers import Handler
from anyecho.net.shared_counts import Row, SharedCounts
from anyecho.net.tls.generated import GeneratedAuthority
from anyecho.options import option
from anyecho.server.options import ServeOptions
from anyecho.server.server import DEFAULT_ADDRESS
from anyecho.validation import check_types


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """Where a server listens and what it serves, as texts: a process that serves nothing imports no handler.

    A worker ignores `bind`, `seed`, `admin` and `control`: its supervisor has acted on them.
    """

    bind: tuple[str, ...] = option(
        (),
        "Listen on this address too; repeatable.",
        name=("--bind", "-b"),
        metavar="ADDRESS",
        show_default=lambda _: f"all sockets that a service manager passed, else {DEFAULT_ADDRESS}",
    )
    handler: str = option(
        "echo",
        "What serves a connection: echo, discard, chargen, upper, prefix, or a function of yours.",
        metavar="NAME|module:function",
    )
    forward: str | None = option(
        None,
        "Forward each connection to this server, like a TCP proxy, in place of the echo.",
        group="Faults",
        metavar="ADDRESS",
    )
    fault: tuple[str, ...] = option(
        (),
        "Misbehave on purpose, like latency:latency=100ms or cut:bytes=1k,on=2; repeatable.",
        metavar="NAME:key=value,...",
    )
    seed: int | None = option(
        None,
        "Repeat the faults of the run that logged this seed.",
        group="Faults",
        converter=whole_number,
    )
    admin: str | None = option(
        None,
        "Answer /metrics, /healthz, /readyz, /stats and /peers over HTTP; a port alone is on localhost.",
        group="Operation",
        metavar="HOST:PORT",
    )
    control: str | None = option(
        None,
        "Let clients of toxiproxy change faults and proxies over HTTP; a port alone is on localhost.",
        group="Faults",
        metavar="HOST:PORT",
    )

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class Job:
    """The values of flags. `options` have the seed, and the CA of a supervisor, but no faults."""

    service: ServiceOptions
    backend: Backend
    options: ServeOptions
    log: LogOptions
    access_log: AccessLog
    #: Where the supervisor, or the single process, answers HTTP requests.
    admin: Address | None = None
    #: Where the single process is controlled.
    control: Address | None = None
    #: The number of the worker, for its log.
    worker: int | None = None

    def find_handler(self) -> Handler:
        """Return the handler, which may be imported now. Raises `UsageError`."""
        if self.service.forward is None:
            return find_handler(self.service.handler)
        if self.service.handler != "echo":
            raise UsageError("forward and handler exclude each other", options=("forward", "handler"))

        from anyecho.server.forwarding import forward  # late: an echo connects to nothing

        return forward(self.service.forward)

    def served_options(self) -> ServeOptions:
        """Return the options with their faults. Raises `UsageError`."""
        if not self.service.fault:
            return self.options

        # Late: the import of all faults takes 24 ms, a tenth of the start.
        from anyecho.faults.spec import parse_fault

        return replace(self.options, faults=tuple(map(parse_fault, self.service.fault)))

    def to_message(self) -> dict[str, Any]:
        return {
            "service": given_flags(self.service),
            "backend": self.backend,
            "options": given_flags(self.options),
            "seed": self.options.seed,
            "processes": self.options.processes,
            "authority": encode(self.options.tls.authority),
            "from_environment": self.options.from_environment,
            "log": given_flags(self.log),
            "access_log": self.access_log,
            "worker": self.worker,
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Job:
        """Return the job that `to_message` has described. What this version does not know is left out.

        Raises:
            UsageError: a value is not one of this version.
        """
        ca, row = message["authority"], message.get("shared_row")
        used = tuple(message["from_environment"])
        options = build_options(ServeOptions, dict(message["options"]), used)
        return cls(
            service=build_options(ServiceOptions, dict(message["service"]), ()),
            backend=message["backend"],
            options=replace(
                options,
                seed=message["seed"],
                processes=message["processes"],
                shared_row=None if row is None else Row(SharedCounts(row["descriptor"], row["rows"]), row["row"]),
                tls=replace(options.tls, authority=None if ca is None else GeneratedAuthority.from_json(ca)),
            ),
            log=build_options(LogOptions, dict(message["log"]), ()),
            access_log=message["access_log"],
            worker=message.get("worker"),
        )
