"""Report options without effect: an error if ignoring them drops protection, else one warning."""

from __future__ import annotations

__all__ = ("report_unused",)

import logging
from collections.abc import Collection, Iterator, Mapping

from anyecho.errors import UsageError


def report_unused(
    unused: Mapping[str, str],
    logger: logging.Logger,
    *,
    protective: Collection[str],
    from_environment: Collection[str],
    mentioned: Collection[str] = (),
) -> None:
    """Raise `UsageError` if an option in `unused` is `protective`; else log one warning. `unused` maps to reasons.

    Options `from_environment` are only warned about: a variable is set for many programs. `mentioned` are the
    options that the reasons name.
    """
    forbidden = {
        name: reason for name, reason in unused.items() if name in protective and name not in from_environment
    }
    for names, reason in _by_reason(forbidden):
        verb = "has" if len(names) == 1 else "have"
        text = f"{', '.join(names)} {verb} no effect: {reason}"
        raise UsageError(text, options=(*names, *mentioned))

    if unused:
        text = ", ".join(f"{', '.join(names)} ({reason})" for names, reason in _by_reason(unused))
        # The record names the options, for a formatter that writes them as flags.
        logger.warning("without effect: %s", text, extra={"options": (*unused, *mentioned)})


def _by_reason(unused: Mapping[str, str]) -> Iterator[tuple[list[str], str]]:
    for reason in dict.fromkeys(unused.values()):
        yield [name for name in unused if unused[name] == reason], reason
