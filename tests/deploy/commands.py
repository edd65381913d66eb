"""The files of deploy/, and the command lines of anyecho in them."""

from __future__ import annotations

__all__ = ("DEPLOY", "Container", "Unit", "command_lines", "on_backend", "read_container", "read_unit")

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

DEPLOY = Path(__file__).parents[2] / "deploy"

#: The values of each key of a systemd unit, in the order of the file. Sections are ignored.
Unit: TypeAlias = dict[str, list[str]]


class Container(NamedTuple):
    """What the Dockerfile starts; its command lines begin with the program."""

    command: list[str]
    health_check: list[str]


def read_unit(name: str) -> Unit:
    """Return the keys of the unit deploy/systemd/`name`."""
    values = defaultdict(list)
    for key, value in re.findall(r"^(\w+)=(.*)$", (DEPLOY / "systemd" / name).read_text(), re.MULTILINE):
        values[key].append(value)

    return dict(values)


def read_container() -> Container:
    text = (DEPLOY / "docker" / "Dockerfile").read_text().replace("\\\n", "")
    [check] = re.findall(r"^HEALTHCHECK .*CMD (\[.*)$", text, re.MULTILINE)
    [entry] = re.findall(r"^ENTRYPOINT (\[.*)$", text, re.MULTILINE)
    [command] = re.findall(r"^CMD (\[.*)$", text, re.MULTILINE)
    return Container(json.loads(entry) + json.loads(command), json.loads(check))


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Yield each file with a command line of anyecho in it, from the verb on; comments count."""
    for path in sorted(each for each in DEPLOY.rglob("*") if each.is_file()):
        for words in re.findall(r"(?m)[\s/]anyecho ((?:serve|send|ping)\b[^|\"\n]*)", path.read_text()):
            yield path.name, shlex.split(words)
    yield "Dockerfile", read_container().command[1:]
    for path in (DEPLOY / "kubernetes").glob("*.yaml"):
        for arguments in re.findall(r"(?m)^ +args:\n((?: +- .*\n)+)", path.read_text()):
            yield path.name, [each.strip('"') for each in re.findall(r"(?m)^ +- (.*)$", arguments)]


def on_backend(arguments: list[str], backend: str) -> list[str]:
    """Return `arguments` with ``--backend`` set to `backend`, whatever it was."""
    kept = list(arguments)
    if "--backend" in kept:
        at = kept.index("--backend")
        del kept[at : at + 2]

    return [*kept, "--backend", backend]
