"""The layout of a help page: the groups of flags in their order, and the last paragraph.

An option names its group where it is defined (``group="Limits"``), or its dataclass does (`option_group`).
"""

from __future__ import annotations

__all__ = ("COMMON", "GROUPS", "SOURCES")

from cyclopts import Group

_ORDER = (
    *("Options", "Load", "Listening", "Connecting", "Limits", "TLS", "PROXY protocol", "UDP", "Faults", "Sockets"),
    *("Own server", "Division of the load", "Workers", "Operation", "Logs", "Results"),
)
#: The groups by name. A page has those that its verb has flags of.
GROUPS = {name: Group(name, sort_key=place) for place, name in enumerate(_ORDER)}
#: The flags that most command lines need. It comes first, and fits on one screen with the usage.
COMMON = GROUPS["Options"]

#: How flags are set without a command line.
SOURCES = (
    "Each flag can also be set by a variable, or in the file of --config: ANYECHO_LOG_LEVEL=info is --log-level "
    "info, and so is log-level = 'info'. The command line overrides a variable, and a variable the file."
)
