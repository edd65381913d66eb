"""The text of a scrape, read back by the parsers of prometheus_client."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from anyecho.server.metrics import render
from anyecho.server.reasons import CloseReason
from anyecho.server.totals import DatagramTotals, Histogram, Totals

TOTALS = Totals(
    accepted=7,
    open=2,
    closed={"eof": 4, "died": 1},
    bytes_received=10**12 + 1,
    bytes_sent=10**12,
    accept_errors={"EMFILE": 3, "shed": 2},
    tls_failures={"http_request": 1},
    connections=Histogram(bounds=(0.5, 1.0), counts=(3, 1, 1), seconds=4.5),
    datagrams=DatagramTotals(received=9, dropped={"rate": 1, "fault": 2}, errors={"EAGAIN": 1}),
    workers_ready=2,
    restarts={"signal": 1},
    log_lines_dropped=6,
)
ROOT = Path(__file__).parent.parent.parent
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
#: What Prometheus 3 sends.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.fixture(autouse=True)
def engine() -> None:
    """No engine is needed."""


def samples(accept: str = "", totals: Totals = TOTALS) -> dict[str, float]:
    """Return the value of each sample by its name, with its labels in braces."""
    text, content_type = render(totals, ready=True, accept=accept)
    parse = parse_openmetrics if "openmetrics" in content_type else parse_text
    found = {}
    for family in parse(text.decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value

    return found


@pytest.mark.parametrize("accept", ["", OPENMETRICS, PROMETHEUS, "text/plain;version=1.0.0"])
def test_a_scrape_has_every_counter(accept: str) -> None:
    found = samples(accept)

    expected = {
        "anyecho_ready": 1,
        "anyecho_connections_open": 2,
        "anyecho_connections_accepted_total": 7,
        "anyecho_connections_closed_total{reason=eof}": 4,
        "anyecho_connections_closed_total{reason=died}": 1,
        "anyecho_connections_shed_total": 2,
        "anyecho_accept_errors_total{error=EMFILE}": 3,
        "anyecho_received_bytes_total": 10**12 + 1,
        "anyecho_sent_bytes_total": 10**12,
        "anyecho_tls_failures_total{error=http_request}": 1,
        "anyecho_datagrams_received_total": 9,
        "anyecho_datagrams_dropped_total{reason=rate}": 1,
        "anyecho_datagrams_dropped_total{reason=fault}": 2,
        "anyecho_workers_ready": 2,
        "anyecho_worker_restarts_total{cause=signal}": 1,
        "anyecho_log_lines_dropped_total": 6,
    }
    assert found.items() >= expected.items()


def test_buckets_are_cumulative() -> None:
    name = "anyecho_connection_duration_seconds"
    found = {key.removeprefix(name): value for key, value in samples().items() if key.startswith(name)}

    buckets = {"_bucket{le=0.5}": 3, "_bucket{le=1.0}": 4, "_bucket{le=+Inf}": 5}
    assert found == buckets | {"_count": 5, "_sum": 4.5}


def test_each_close_reason_has_a_value_before_it_has_occurred() -> None:
    found = samples(totals=Totals())

    assert {found[f"anyecho_connections_closed_total{{reason={reason}}}"] for reason in CloseReason} == {0}


def test_both_formats_have_the_same_samples() -> None:
    assert samples() == samples(OPENMETRICS)


def test_a_scrape_is_small_whatever_peers_do() -> None:
    names = {f"error_{number}": 1 for number in range(30)}

    assert len(samples(totals=Totals(tls_failures=names, accept_errors=names))) < 200


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text; version=abc", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain; version=x", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    ],
)
def test_the_format_is_what_the_scraper_accepts(accept: str, content_type: str) -> None:
    assert render(TOTALS, ready=True, accept=accept)[1] == content_type


@pytest.mark.parametrize("ready", [False, True])
def test_readiness_is_a_metric(ready: bool) -> None:
    assert f"\nanyecho_ready {float(ready)}\n".encode() in render(TOTALS, ready=ready)[0]


def test_the_table_of_metrics_is_complete() -> None:
    table = (ROOT / "docs" / "operating.md").read_text().partition("| metric |")[2]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*) \|$", table, re.MULTILINE)
    families = []
    for family in parse_text(render(TOTALS, ready=True)[0].decode()):
        suffix = "_total" if family.type == "counter" else ""
        labels = {name for sample in family.samples for name in sample.labels if name != "le"}
        shown = " ".join(f"`{label}`" for label in labels)
        families.append((f"{family.name}{suffix}", family.type, shown, family.documentation))

    assert rows == families
