"""What one server has counted, as a value: for metrics, and for a supervisor that adds up its workers."""

from __future__ import annotations

__all__ = (
    "CONNECTION_BOUNDS",
    "DIED",
    "HANDSHAKE_BOUNDS",
    "LAG_BOUNDS",
    "DatagramTotals",
    "Histogram",
    "Totals",
    "merge",
)

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial, reduce
from typing import Any

from anyecho.codec import decode, encode
from anyecho.errors import InternalError, UsageError

#: Upper bounds of the buckets of each histogram, in seconds. Fixed, so that the histograms of workers add up.
CONNECTION_BOUNDS = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 86400.0)
HANDSHAKE_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0)

#: The close reason of the connections that were open when their process died.
DIED = "died"


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Observed seconds. `counts` is by bucket: up to and including each of `bounds`, and those above the last."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...] = ()
    #: The sum of all observations.
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if not self.counts:
            object.__setattr__(self, "counts", (0,) * (len(self.bounds) + 1))
        if len(self.counts) != len(self.bounds) + 1:
            raise InternalError(f"a histogram of {len(self.bounds)} bounds has {len(self.counts)} counts")

    def __add__(self, other: Histogram) -> Histogram:
        if self.bounds != other.bounds:
            raise InternalError(f"histograms with different bounds: {self.bounds} and {other.bounds}")

        counts = tuple(map(sum, zip(self.counts, other.counts, strict=True)))
        return Histogram(bounds=self.bounds, counts=counts, seconds=self.seconds + other.seconds)


@dataclass(frozen=True, kw_only=True)
class DatagramTotals:
    """UDP: `dropped` is by reason, `errors` by errno name, as in `DatagramCounts`."""

    received: int = 0
    echoed: int = 0
    bytes_received: int = 0
    bytes_echoed: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What a server, or several, have counted since their start. `accepted` is `open` plus the sum of `closed`.

    * `closed`: by close reason, and ``died``; `accept_errors`: by errno name, and ``shed``;
    * `bytes_received`, `bytes_sent`: of closed and open connections, plaintext over TLS;
    * `tls_failures`: failed handshakes and invalid records, by OpenSSL's name of the error, like
      ``wrong_version_number``;
    * `handshakes`: duration of the TLS handshakes that succeeded; `connections`: duration of closed connections,
      from accept to close; `loop_lag`: by how much the event loop was late for a timer;
    * `workers_ready`: processes that accept connections; `restarts`: workers that were started anew, by cause;
    * `log_lines_dropped`: log lines that standard error did not take.
    """

    accepted: int = 0
    open: int = 0
    closed: dict[str, int] = field(default_factory=dict)
    bytes_received: int = 0
    bytes_sent: int = 0
    accept_errors: dict[str, int] = field(default_factory=dict)
    tls_failures: dict[str, int] = field(default_factory=dict)
    handshakes: Histogram = field(default_factory=partial(Histogram, bounds=HANDSHAKE_BOUNDS))
    connections: Histogram = field(default_factory=partial(Histogram, bounds=CONNECTION_BOUNDS))
    loop_lag: Histogram = field(default_factory=partial(Histogram, bounds=LAG_BOUNDS))
    datagrams: DatagramTotals = DatagramTotals()
    workers_ready: int = 0
    restarts: dict[str, int] = field(default_factory=dict)
    log_lines_dropped: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return objects, lists and numbers of JSON, for `from_json`."""
        encoded: dict[str, Any] = encode(self)
        return encoded

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Totals:
        """Return the totals that `to_json` has made `value` from.

        Fields of a newer version are left out. Raises `UsageError` if a field or a bound of a histogram differs.
        """
        try:
            return merge([decode(cls, value)])
        except InternalError as exc:
            raise UsageError(f"totals of another version: {exc}") from exc

    def after_end(self) -> Totals:
        """Return these totals for a process that has ended: what was open is closed, for the reason ``died``."""
        closed = self.closed
        if self.open:
            closed = {**closed, DIED: closed.get(DIED, 0) + self.open}

        return replace(self, open=0, closed=closed, workers_ready=0)


def merge(totals: Iterable[Totals]) -> Totals:
    """Return the sum of `totals`."""
    return reduce(_add, totals, Totals())


def _add(one: Any, other: Any) -> Any:
    if isinstance(one, Mapping):
        return dict(Counter(one) + Counter(other))
    if is_dataclass(one) and not isinstance(one, Histogram):
        sums = {each.name: _add(getattr(one, each.name), getattr(other, each.name)) for each in fields(one)}
        kind: Any = type(one)
        return kind(**sums)

    return one + other
