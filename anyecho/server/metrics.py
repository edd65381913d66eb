"""Totals as text for Prometheus, in the format that the scraper accepts.

No other module imports prometheus_client. The metrics are made anew for each scrape: nothing is counted in its
objects, and its global registry is not used.
"""

from __future__ import annotations

__all__ = ("render",)

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from anyecho._version import __version__
from anyecho.server.reasons import CloseReason
from anyecho.server.totals import DIED, Histogram, Totals
from anyecho.server.udp_guard import DROP_REASONS


def render(totals: Totals, *, ready: bool, accept: str = "") -> tuple[bytes, str]:
    """Return the text of a scrape and its content type, chosen by the Accept field of the request."""
    scrape = _Scrape(totals, ready)
    try:
        encode, content_type = choose_encoder(accept)
        return encode(scrape), content_type
    except (TypeError, ValueError):  # prometheus_client cannot compare the version in the field
        encode, content_type = choose_encoder("")
        return encode(scrape), content_type


@dataclass(frozen=True)
class _Scrape:
    """A registry for one scrape."""

    totals: Totals
    ready: bool

    def collect(self) -> Iterator[Metric]:
        totals = self.totals
        yield InfoMetricFamily("anyecho_build", "Version of anyecho.", {"version": __version__})
        yield _gauge("ready", "1 if new connections are accepted, else 0.", int(self.ready))
        yield from self._connections()
        yield from self._datagrams()
        text = "By how much a timer of the event loop was late, four times a second."
        yield _histogram("event_loop_lag", text, totals.loop_lag)
        yield _gauge("workers_ready", "Processes that accept connections.", totals.workers_ready)
        yield _by("worker_restarts", "Workers started anew after an unplanned end.", "cause", totals.restarts)
        text = "Log lines that standard error did not accept."
        yield _counter("log_lines_dropped", text, totals.log_lines_dropped)

    def _connections(self) -> Iterator[Metric]:
        totals = self.totals
        accept_errors = {**totals.accept_errors}
        shed = accept_errors.pop("shed", 0)
        reasons = (*CloseReason, DIED)
        yield _gauge("connections_open", "Connections that are open.", totals.open)
        yield _counter("connections_accepted", "Connections accepted.", totals.accepted)
        yield _by("connections_closed", "Connections closed.", "reason", totals.closed, known=reasons)
        yield _counter("connections_shed", "Connections closed at once for lack of a descriptor.", shed)
        yield _by("accept_errors", "Errors of accept(2).", "error", accept_errors)
        text = "Bytes received on connections; plaintext over TLS."
        yield _counter("received_bytes", text, totals.bytes_received, unit="bytes")
        yield _counter("sent_bytes", "Bytes sent on connections.", totals.bytes_sent, unit="bytes")
        yield _histogram("connection_duration", "Time from accept to close.", totals.connections)
        yield _histogram("tls_handshake_duration", "Time of completed TLS handshakes.", totals.handshakes)
        text = "TLS handshakes and records that failed, by OpenSSL's name of the error."
        yield _by("tls_failures", text, "error", totals.tls_failures)

    def _datagrams(self) -> Iterator[Metric]:
        udp = self.totals.datagrams
        yield _counter("datagrams_received", "Datagrams received.", udp.received)
        yield _counter("datagrams_echoed", "Datagrams echoed.", udp.echoed)
        yield _by("datagrams_dropped", "Datagrams without a reply.", "reason", udp.dropped, known=DROP_REASONS)
        yield _by("datagram_errors", "Errors of UDP sockets.", "error", udp.errors)
        yield _counter("datagram_received_bytes", "Bytes received in datagrams.", udp.bytes_received, unit="bytes")
        yield _counter("datagram_echoed_bytes", "Bytes echoed in datagrams.", udp.bytes_echoed, unit="bytes")


def _gauge(name: str, text: str, value: int) -> Metric:
    return GaugeMetricFamily(f"anyecho_{name}", text, value)


def _counter(name: str, text: str, value: int, unit: str = "") -> Metric:
    return CounterMetricFamily(f"anyecho_{name}", text, value, unit=unit)


def _by(name: str, text: str, label: str, values: Mapping[str, int], known: Iterable[str] = ()) -> Metric:
    """Return a counter for each of `values`, and 0 for each other one of `known`: a rate needs a first value."""
    metric = CounterMetricFamily(f"anyecho_{name}", text, labels=[label])
    for key, value in ({str(each): 0 for each in known} | dict(values)).items():
        metric.add_metric([key], value)

    return metric


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    buckets = [*zip(bounds, accumulate(histogram.counts), strict=True)]
    return HistogramMetricFamily(f"anyecho_{name}", text, buckets, histogram.seconds, unit="seconds")
