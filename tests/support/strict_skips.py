"""A pytest plugin: with ``--strict-skips``, a skip that `support.machine` does not explain fails the run."""

from __future__ import annotations

__all__ = ()

import pytest

from tests.support.machine import ABSENT


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "fail if a test is skipped, unless this machine lacks what it needs"
    parser.addoption("--strict-skips", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--strict-skips"):
        config.pluginmanager.register(_StrictSkips())


class _StrictSkips:
    def __init__(self) -> None:
        self.unexplained: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            assert isinstance(report.longrepr, tuple)
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if not reason.startswith(ABSENT):
                self.unexplained.append(f"{report.nodeid}: {reason}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexplained and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.unexplained:
            terminalreporter.write_line(f"unexplained skip: {line}", red=True)
