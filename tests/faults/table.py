"""The fault table: faults, the required behaviour, and the scenarios that inject them.

The modules ``rows_*`` register their scenarios here.
"""

from __future__ import annotations

__all__ = ("EXCUSED", "ROWS", "SCENARIOS", "Observed", "Row", "Scenario", "Scene", "injects")

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from anyecho.backends import Backend, run
from tests.support.process import Processes

#: What was observed, in words and figures, after the assertions.
Observed: TypeAlias = Mapping[str, object]


@dataclass(frozen=True)
class Row:
    fault: str
    required: str


@dataclass(frozen=True)
class Scene:
    """The backend, processes and directory of a scenario."""

    backend: Backend
    processes: Processes
    #: Initially empty; its path is short enough for a Unix socket in it.
    directory: Path


#: Either runs on the backend of the scene, or starts processes that do.
Injection: TypeAlias = Callable[[Scene], Awaitable[Observed]] | Callable[[Scene], Observed]
Inject = TypeVar("Inject", bound=Injection)


@dataclass(frozen=True)
class Scenario:
    """One way of injecting the fault of a row; fails unless the requirement of the row is met."""

    number: int
    injected: str
    inject: Injection
    #: Whether it needs its own network namespace, with all ports free.
    alone: bool
    slow: bool

    @property
    def name(self) -> str:
        return self.inject.__name__

    def run(self, scene: Scene) -> Observed:
        observed = self.inject(scene)
        return observed if isinstance(observed, Mapping) else run(_result_of, observed, backend=scene.backend)


async def _result_of(observed: Awaitable[Observed]) -> Observed:
    return await observed


SCENARIOS: list[Scenario] = []


def injects(number: int, injected: str, *, alone: bool = False, slow: bool = False) -> Callable[[Inject], Inject]:
    """Register the decorated function as a scenario of row `number`; `injected` describes it."""

    def register(inject: Inject) -> Inject:
        SCENARIOS.append(Scenario(number, injected, inject, alone, slow))
        return inject

    return register


#: Rows without a scenario, and why.
EXCUSED: dict[int, str] = {}

ROWS = {
    1: Row(
        "EMFILE, ENFILE, ENOBUFS, ENOMEM in accept",
        "keep all connections, shed or pause <= 100 ms, < 5 % CPU, recover < 200 ms after release",
    ),
    2: Row("ECONNABORTED, EPERM, EPROTO, ECONNRESET, EINTR ... in accept", "ignore, count"),
    3: Row(
        "a handler raises (groups too, and during a drain)", "only that connection ends; it is counted as an error"
    ),
    4: Row(
        "flood without reading, data before accept",
        "RSS + <= 1 MiB per connection; closed after write_timeout",
    ),
    5: Row("slow reader, slow writer", "min_rate ends them; other clients' p99 unchanged"),
    6: Row(
        "slowloris: TCP idle, TLS before its handshake, half a PROXY header",
        "closed at the limit; a good client < 200 ms with 1000 attackers",
    ),
    7: Row(
        "RST at every state: before accept, handshake, mid-echo, drain", "no log line at the default level, no leak"
    ),
    8: Row(
        "FIN, half-close, TLS half-close, FIN without close_notify",
        "echo everything pending, then FIN; a TLS truncation is flagged",
    ),
    9: Row("the server closes while the peer sends (limit, drain)", "all echoed bytes arrive"),
    10: Row("a message of 100 MiB, client", "no deadlock, constant memory, digest equal"),
    11: Row(
        "TLS: garbage, wrong version, bad record, no answer to the close, KeyUpdate",
        "the connection ends within limits, throttled log, alert sent",
    ),
    12: Row(
        "certificate rotated, or broken, on SIGHUP",
        "the next handshake uses the new one; if broken, the old one stays, with an error in the log",
    ),
    13: Row(
        "SIGTERM idle, busy, twice; SIGINT; SIGHUP; storms of signals",
        "phases and exit status; deadline + <= 0.5 s",
    ),
    17: Row(
        "UDP source forged: port 0, below 1024, own port, broadcast, multicast",
        "dropped and counted, the server continues",
    ),
    18: Row("two UDP echo services talk to each other", "no more datagrams than the rates allow; it ends"),
    19: Row(
        "UDP: empty, 1, 65507 bytes, burst, ICMP refused, EMSGSIZE, ENETUNREACH",
        "echoed, or counted; the server continues",
    ),
    20: Row(
        "PROXY header malformed, untrusted, absent, partial, 64 KiB long",
        "rejected before any echo; no forged address in logs or limits",
    ),
    21: Row(
        "a flood of connections over the maximum, in all and of one address",
        "wait or close by policy, existing ones unaffected, descriptors kept in reserve",
    ),
    22: Row(
        "Unix path: stale, live, wrong mode, directory not writable, abstract",
        "refuse a live path, replace a stale one, right mode from the start, unlink only the own file",
    ),
    23: Row(
        "systemd: LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES wrong, not listening, mixed kinds, watchdog",
        "clear error or correct mapping, close-on-exec, environment unset",
    ),
    24: Row("the peer vanishes without a FIN", "keepalive and TCP_USER_TIMEOUT end it"),
    25: Row("a client connects to itself", "treated as refused"),
    26: Row(
        "port in use, bad host, no IPv6, name server slow", "exit 3 and one line within 1 s, nothing half-bound"
    ),
    28: Row("descriptors reused, waits cancelled", "no lost waiter, no lost accept"),
}
