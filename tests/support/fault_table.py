"""A pytest plugin: the fault table, made of the tests that inject its faults.

``@pytest.mark.fault(row=7, injected="a RST mid-echo")`` names the row of a test. With ``--fault-table``, only these
tests run. Then the plugin prints the table in Markdown: each row, what its tests inject, their results by backend.
The run fails if a row has no test on one of the backends. ``python -m tests.faults`` starts such a run.
"""

from __future__ import annotations

__all__ = ("ROWS", "Row")

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from anyecho.backends import BACKENDS


class Row(NamedTuple):
    fault: str
    required: str


ROWS = {
    1: Row(
        "EMFILE, ENFILE, ENOBUFS, ENOMEM in accept",
        "keep all connections, shed or pause, no busy-polling, recover after release",
    ),
    2: Row("ECONNABORTED, EPERM, EPROTO, ECONNRESET, EINTR ... in accept", "ignore, count"),
    3: Row(
        "a handler raises (groups too, and during a drain)", "only that connection ends; it is counted as an error"
    ),
    4: Row(
        "flood without reading, data before accept",
        "RSS + <= 1 MiB per connection; closed after write_timeout",
    ),
    5: Row("slow reader, slow writer", "min_rate ends them; other clients are served"),
    6: Row(
        "slowloris: TCP idle, TLS before its handshake, half a PROXY header",
        "closed at the limit; a good client is served beside 1000 attackers",
    ),
    7: Row(
        "RST at every state: before accept, handshake, mid-echo, drain", "no log line at the default level, no leak"
    ),
    8: Row(
        "FIN, half-close, TLS half-close, FIN without close_notify",
        "echo everything pending, then FIN; a TLS truncation is flagged",
    ),
    9: Row("the server closes while the peer sends (limit, drain)", "all echoed bytes arrive"),
    10: Row("a message of 100 MiB, client", "no deadlock, constant memory, echo equal"),
    11: Row(
        "TLS: garbage, wrong version, bad record, no answer to the close, KeyUpdate",
        "the connection ends within limits, throttled log, alert sent",
    ),
    12: Row(
        "certificate rotated, or broken, on SIGHUP",
        "the next handshake uses the new one; if broken, the old one stays, with an error in the log",
    ),
    13: Row("SIGTERM idle, busy, twice; SIGINT; SIGHUP; storms of signals", "phases and exit status"),
    14: Row(
        "a worker is killed, stopped, dies at the start, or again and again",
        "it is replaced, after a growing delay; a failure of the first start ends the service; others serve on",
    ),
    15: Row("workers are replaced under load", "no connection is lost or reset"),
    16: Row("the supervisor is killed", "its workers end within a second"),
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
        "PROXY header malformed, untrusted, absent, partial, too long",
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
    26: Row("port in use, bad host, no IPv6, name server dead", "exit 3 and one line, nothing half-bound"),
    27: Row("standard error blocked, closed, or on a full disk", "the service goes on; lost log lines are counted"),
    28: Row("descriptors reused, waits cancelled", "no lost waiter, no lost accept"),
    29: Row("code that blocks the event loop", "the worker is replaced; the others serve on"),
    30: Row("a worker runs out of memory", "it is replaced; the others serve on"),
}

#: The name of the property that carries a mark from a worker process to the table: row, injected, test, backend.
_PROPERTY = "fault"
#: The backend of a test that has no parameter for one.
_NONE = "no event loop"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fault table")
    group.addoption("--fault-table", action="store_true", help="run the tests that inject faults; print the table")
    group.addoption("--row", action="append", type=int, choices=ROWS, help="of the table; repeatable")
    group.addoption("--backend", action="append", choices=BACKENDS, help="of the table; repeatable")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fault-table"):
        rows = config.getoption("--row") or list(ROWS)
        config.pluginmanager.register(_Table(rows, config.getoption("--backend") or BACKENDS))


class _Table:
    def __init__(self, rows: Sequence[int], backends: Sequence[str]) -> None:
        self.rows = rows
        self.backends = backends
        #: Results by test, and whether it passed, by row; the tests of a row are in the order of their results.
        self.results: dict[int, dict[tuple[str, str], Counter[str]]] = {row: defaultdict(Counter) for row in rows}
        self.ran_on: dict[int, set[str]] = defaultdict(set)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        kept = [item for item in items if self._tag(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    def _tag(self, item: pytest.Item) -> bool:
        """Attach the rows of a test to its reports. Return whether it belongs to the table."""
        backend = _backend_of(item)
        marks = [mark.kwargs for mark in item.iter_markers("fault")]
        if unknown := {mark["row"] for mark in marks} - ROWS.keys():
            raise pytest.UsageError(f"{item.nodeid}: the fault table has no row {unknown}")
        if backend not in (*self.backends, _NONE):
            return False

        for mark in marks:
            if mark["row"] in self.rows:
                name = item.nodeid.partition("[")[0].rpartition("::")[2]
                item.user_properties.append((_PROPERTY, (mark["row"], mark["injected"], name, backend)))
        return bool(item.user_properties)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return

        for name, value in report.user_properties:
            if name == _PROPERTY:
                assert isinstance(value, (tuple, list))  # execnet makes a list of it
                row, injected, test, backend = value
                self.results[row][injected, test][f"{backend}: {_outcome(report)}"] += 1
                self.ran_on[row].add(backend)

    def missing(self) -> list[str]:
        """Return a line for each row that has no test on a backend."""
        absent = {row: set(self.backends) - self.ran_on[row] for row in self.rows}
        return [f"row {row} has no test on {', '.join(sorted(each))}" for row, each in absent.items() if each]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        # A worker process has only a part of the results.
        if not hasattr(session.config, "workerinput") and self.missing() and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        write = terminalreporter.write_line
        write("| # | fault | required | injected | test | result |")
        write("|---|---|---|---|---|---|")
        for number in self.rows:
            row = ROWS[number]
            for (injected, test), counts in self.results[number].items():
                result = "<br>".join(f"{text} ({count})" for text, count in sorted(counts.items()))
                write(f"| {number} | {row.fault} | {row.required} | {injected} | `{test}` | {result} |")
        for line in self.missing():
            write(line, red=True)


def _backend_of(item: pytest.Item) -> str:
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    value = params.get("anyio_backend", params.get("backend", _NONE))
    if isinstance(value, tuple):
        return "uvloop" if value[1].get("use_uvloop") else str(value[0])

    return str(value)


def _outcome(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return f"not run: {report.longrepr[2].removeprefix('Skipped: ')}"

    return "passed" if report.passed else "**failed**"
