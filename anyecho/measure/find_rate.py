"""Search for the highest rate of an open loop at which a condition holds. Nothing is measured here."""

from __future__ import annotations

__all__ = ("RateSearch", "parse_condition")

from math import floor, log10

from anyecho.errors import UsageError
from anyecho.measure.checks import rate_text
from anyecho.measure.gates import Gate, parse_gate
from anyecho.measure.outcome import RATE_TOLERANCE
from anyecho.measure.result import RunResult

_START = 1000.0
#: The search ends when the rate that failed is within 5 % of the one that held, or below 1/s.
_PRECISION, _LOWEST = 1.05, 1.0


def parse_condition(text: str) -> Gate:
    """Return the condition of a text like ``p99<1ms``. Raises `UsageError`."""
    condition = parse_gate(text)
    if condition.relative:
        raise UsageError(f"find_rate {text!r} must be a figure of one run, like 'p99<1ms'", options=("find_rate",))

    return condition


class RateSearch:
    """The next rate to try, None when the search is over, and what it has found.

    The rate is doubled until the condition fails, then the interval is bisected to 5 %. A run with a late generator
    is repeated once: another process may have had its core. A second one ends the search, because it does not tell
    what the server can do.
    """

    def __init__(self, condition: Gate, start: float | None = None) -> None:
        self.rate: float | None = start or _START
        self.held: float | None = None
        self.failed: float | None = None
        self._condition = condition
        self._reason = ""
        self._limit = ""
        self._was_late = False

    def report(self, run: RunResult) -> str:
        """Take the result of the run at `rate`, choose the next rate, and return the verdict as a line."""
        assert self.rate is not None
        rate = self.rate
        if run.interrupted:
            self._end("the search was interrupted")
            return f"{self._condition.text}: interrupted"

        if run.generator.late:
            if self._was_late:
                self._end(f"the generator is the limit at {rate_text(rate)}")
            self._was_late = True
            return f"{self._condition.text}: no verdict, because the generator was late"

        self._was_late = False
        if reason := self._failure(run):
            self.failed, self._reason = rate, reason
        else:
            self.held = rate
        self.rate = self._next()
        return f"{self._condition.text}: {f'does not hold: {reason}' if reason else 'holds'}"

    def summary(self) -> str:
        """Return the outcome of the search as a line."""
        text = self._condition.text
        failed = f"at {rate_text(self.failed)}: {self._reason}" if self.failed is not None else ""
        if self.held is None:
            why = self._limit or f"not even {failed}"
            return f"no rate was found at which {text} holds: {why}"

        bound = "at least " if self._limit else ""
        return (
            f"{text} holds up to {bound}{rate_text(self.held)} ({'; '.join(filter(None, (failed, self._limit)))})"
        )

    def _failure(self, run: RunResult) -> str:
        """Return why the rate of `run` is too high; empty if it is not."""
        counts, generator = run.counts, run.generator
        if run.saturated:
            return "a queue of due messages became full"
        if counts.verified != counts.sent or not counts.sent:
            return run.error or f"{counts.sent - counts.verified} of {counts.sent} messages did not come back"
        asked = generator.asked_rate
        if asked is not None and abs(generator.achieved_rate - asked) > RATE_TOLERANCE * asked:
            return f"{rate_text(generator.achieved_rate)} sent of {rate_text(asked)}"

        metric = self._condition.metric
        value = metric.of(run)
        if value is None:
            return f"{metric.name} is not known (10 samples must be beyond it: a longer duration has more)"

        return "" if self._condition.is_beyond(value) else f"{metric.name} is {metric.show(value)}"

    def _next(self) -> float | None:
        if self.failed is None:
            assert self.held is not None
            return self.held * 2
        if self.held is None:
            return max(_rounded(self.failed / 2), _LOWEST) if self.failed > _LOWEST else None
        if self.failed <= self.held * _PRECISION:
            return None

        return _rounded((self.held + self.failed) / 2)

    def _end(self, reason: str) -> None:
        self._limit = reason
        self.rate = None


def _rounded(rate: float) -> float:
    """Return `rate` with 3 digits, which is finer than the precision of the search."""
    return round(rate, 2 - floor(log10(rate)))
