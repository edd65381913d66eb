"""The files of deploy/, and the command lines of anyecho in them."""

from __future__ import annotations

__all__ = ("DEPLOY", "Unit", "on_backend", "read_unit")

import re
from collections import defaultdict
from pathlib import Path
from typing import TypeAlias

DEPLOY = Path(__file__).parents[2] / "deploy"

#: The values of each key of a systemd unit, in the order of the file. Sections are ignored.
Unit: TypeAlias = dict[str, list[str]]


def read_unit(name: str) -> Unit:
    """Return the keys of the unit deploy/systemd/`name`."""
    values = defaultdict(list)
    for key, value in re.findall(r"^(\w+)=(.*)$", (DEPLOY / "systemd" / name).read_text(), re.MULTILINE):
        values[key].append(value)

    return dict(values)


def on_backend(arguments: list[str], backend: str) -> list[str]:
    """Return `arguments` with ``--backend`` set to `backend`, whatever it was."""
    kept = list(arguments)
    if "--backend" in kept:
        at = kept.index("--backend")
        del kept[at : at + 2]

    return [*kept, "--backend", backend]
