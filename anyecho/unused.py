"""Report options without effect: an error if ignoring them drops protection, else one warning."""

from __future__ import annotations

__all__ = ("report_unused",)

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from anyecho.errors import UsageError
from anyecho.validation import given_options


def report_unused(
    options: Any,
    reasons: Mapping[str, str],
    logger: logging.Logger,
    *,
    protective: Collection[str],
    mentioned: Collection[str],
) -> None:
    """Raise `UsageError` if a given option without effect is `protective`; else log one warning.

    `reasons` are those of the options without effect, given or not, and of ?proxy= if the address has it in vain.
    Options from the environment are only warned about: a variable is set for many programs. `mentioned` are the
    options that the reasons name.
    """
    unused = [name for name in (*given_options(options), "?proxy=") if name in reasons]
    forbidden = [name for name in unused if name in protective and name not in options.from_environment]
    for names, reason in _by_reason(forbidden, reasons):
        verb = "has" if len(names) == 1 else "have"
        text = f"{', '.join(names)} {verb} no effect: {reason}"
        raise UsageError(text, options=(*names, *mentioned))

    if unused:
        text = ", ".join(f"{', '.join(names)} ({reason})" for names, reason in _by_reason(unused, reasons))
        # The record names the options, for a formatter that writes them as flags.
        logger.warning("without effect: %s", text, extra={"options": (*unused, *mentioned)})


def _by_reason(unused: Collection[str], reasons: Mapping[str, str]) -> Iterator[tuple[list[str], str]]:
    for reason in dict.fromkeys(reasons[name] for name in unused):
        yield [name for name in unused if reasons[name] == reason], reason
