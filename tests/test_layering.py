"""The layering of the package: allowed imports, and modules that only some folders may use.

The source is parsed, not imported. Imports under ``if TYPE_CHECKING:`` are exempt, because they do not run.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

import anyecho

PACKAGE = Path(anyecho.__file__).parent

#: A module imports from lower layers. "" is ``anyecho/__init__.py``.
LAYERS = {
    "errors": 0,
    "_version": 0,
    "passthrough": 0,
    "throttled_log": 0,
    "clock": 1,
    "host": 1,
    "units": 1,
    "unused": 1,
    "validation": 1,
    "address": 2,
    "backends": 2,
    "echo": 2,
    "transcript": 2,
    "net": 3,
    "faults": 4,
    "server": 5,
    "measure": 5,
    "cli": 6,
    "__main__": 7,
    "": 8,
}

#: Within a folder, a module imports from those listed before it.
FOLDERS = {
    "net": (
        "descriptors",
        "threads",
        "tuning",
        "sockets",
        "pending",
        "names",
        "error_queue",
        "foreign_options",
        "accepted",
        "driver",
        "fallback",
        "registration",
        "poller",
        "stream",
        "tls_errors",
        "tls_outgoing",
        "tls_records",
        "tls_attributes",
        "tls_transfer",
        "tls_files",
        "tls_contexts",
        "linger",
        "tls",
        "tls_connect",
        "proxy_protocol",
        "proxied",
        "datagram_stream",
        "datagram_counts",
        "pktinfo",
        "singly",
        "mmsg",
        "datagrams",
        "bind",
        "inherit",
        "unix",
        "listen",
        "activation",
        "notify",
        "accept",
        "connect",
    ),
    "faults": (),
    "server": (
        "options",
        "unused",
        "stats",
        "limits",
        "handshakes",
        "connection",
        "metered",
        "tasks",
        "events",
        "tls_events",
        "introduction",
        "reception",
        "udp",
        "listening",
        "server",
    ),
    "measure": (
        "options",
        "unused",
        "source",
        "exchange",
        "ledger",
        "datagrams",
        "client",
        "course",
        "closed_loop",
        "load",
    ),
    "cli": (
        "default_action",
        "terminal",
        "console",
        "streams",
        "signals",
        "logs",
        "spelling",
        "environment",
        "flags",
        "mistakes",
        "send",
        "serve",
        "main",
    ),
}

#: Names that only the listed folders or modules may use; a module includes everything in it.
RESTRICTED = {
    "asyncio": (),
    "trio": (),
    "uvloop": (),
    "socket": ("net",),
    "ssl": ("net",),
    "select": ("net",),
    "anyio.wait_readable": ("net.driver", "net.fallback"),
    "anyio.wait_writable": ("net.fallback",),
    "sniffio": ("net.driver",),
    "cyclopts": ("cli",),
    "rich": ("cli",),
    "signal": ("cli",),
    "anyio.open_signal_receiver": ("cli",),
    "print": ("cli",),
    "sys.exit": ("cli", "__main__"),
}

#: The names are lazy here; Ctrl-C may come there while the command line is being imported; trustme is an extra;
#: ctypes is missing from a Python that was built without libffi; rich is slow to import, and needed for help only.
MAY_IMPORT_LATE = ("", "__main__", "cli.main", "net.datagrams", "net.tls_contexts")


def is_within(name: str, outer: str) -> bool:
    return f"{name}.".startswith(f"{outer}.")


def place_of(module: str) -> tuple[int, str, int] | None:
    """Return layer, folder and position in it; ``__init__`` comes first, so it imports no sibling."""
    folder, _, name = module.partition(".")
    if folder not in LAYERS or (name and name not in FOLDERS.get(folder, ())):
        return None

    return LAYERS[folder], folder, FOLDERS[folder].index(name) + 1 if name else 0


def module_of(name: str) -> str | None:
    """Return the module of a `name` in the package: "net.poller" for ``anyecho.net.poller.Poller``."""
    package, *path = name.split(".")
    if package != "anyecho":
        return None

    while path and place_of(".".join(path)) is None:
        path.pop()

    return ".".join(path)


def may_import(module: str, other: str) -> bool:
    place, lower = place_of(module), place_of(other)
    assert place is not None
    assert lower is not None
    return lower[0] < place[0] or (lower[1] == place[1] and lower[2] < place[2])


class Reader(ast.NodeVisitor):
    """Collects the full names that a module `used`: its imports, and their attributes.

    `late` holds the imports inside functions.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self.used: set[str] = set()
        self.late: set[str] = set()
        self._depth = 0
        self._meaning = {name: name for name in dir(builtins)}

    def visit_If(self, node: ast.If) -> None:
        exempt = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for each in node.orelse if exempt else [node.test, *node.body, *node.orelse]:
            self.visit(each)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            # "import a.b" binds a, "import a.b as c" binds a.b.
            bound = alias.name if alias.asname else alias.name.partition(".")[0]
            self._add(alias.name)
            self._meaning[alias.asname or bound] = bound

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = resolve_name("." * node.level + (node.module or ""), self.package)
        for alias in node.names:
            self._add(f"{module}.{alias.name}")
            self._meaning[alias.asname or alias.name] = f"{module}.{alias.name}"

    def visit_Attribute(self, node: ast.Attribute | ast.Name) -> None:
        name = self._full_name(node)
        if name is not None:
            self.used.add(name)

        self.generic_visit(node)

    visit_Name = visit_Attribute

    def _add(self, name: str) -> None:
        self.used.add(name)
        if self._depth:
            self.late.add(name)

    def _full_name(self, node: ast.expr) -> str | None:
        if isinstance(node, ast.Attribute):
            owner = self._full_name(node.value)
            return owner and f"{owner}.{node.attr}"

        # A name without a meaning is a variable, which may be called "signal".
        return self._meaning.get(node.id) if isinstance(node, ast.Name) else None


def violations(module: str, source: str) -> Iterator[str]:
    """Yield the violations in the `source` of a module, for example "net.poller"."""
    if place_of(module) is None:
        yield "is in no layer"
        return

    folder = module if module in FOLDERS else module.rpartition(".")[0]
    reader = Reader(f"anyecho.{folder}".rstrip("."))
    reader.visit(ast.parse(source))
    for name in sorted(reader.used):
        other = module_of(name)
        if other is not None and not may_import(module, other):
            yield f"imports {name} from above or beside it"

        # The functions of `random` share one generator, which other code may have seeded.
        if name.startswith("random.") and not is_within(name, "random.Random"):
            yield f"uses {name}"

        for restricted, users in RESTRICTED.items():
            if is_within(name, restricted) and not any(is_within(module, user) for user in users):
                yield f"uses {name}"

    if module not in MAY_IMPORT_LATE:
        yield from (f"imports {name} inside a function" for name in sorted(reader.late))


def modules() -> dict[str, Path]:
    """Return the path of every module, by its name without "anyecho"."""
    paths = {path.relative_to(PACKAGE).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
    return {".".join(part for part in name.parts if part != "__init__"): path for name, path in paths.items()}


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_obeys_the_layering(module: str) -> None:
    assert list(violations(module, modules()[module].read_text())) == []


def test_modules_of_every_folder_are_checked() -> None:
    assert {"", "__main__", "errors", "net", "net.poller", "server.server", "cli.main"} <= set(modules())


@pytest.mark.parametrize(
    ("module", "source", "violation"),
    [
        # Layers.
        ("utils", "", "is in no layer"),
        ("net.helpers", "", "is in no layer"),
        ("utils.text", "", "is in no layer"),
        ("errors", "from anyecho.units import Unit", "imports anyecho.units.Unit from above or beside it"),
        ("units", "import anyecho.address", "imports anyecho.address from above or beside it"),
        ("net.poller", "from anyecho.server import tasks", "imports anyecho.server.tasks from above or beside it"),
        ("server.tasks", "from anyecho.cli import main", "imports anyecho.cli.main from above or beside it"),
        ("server.tasks", "import anyecho", "imports anyecho from above or beside it"),
        ("cli.main", "from anyecho import serve", "imports anyecho.serve from above or beside it"),
        ("cli.main", "import anyecho.__main__", "imports anyecho.__main__ from above or beside it"),
        # Folders.
        ("net.sockets", "from anyecho.net.poller import x", "imports anyecho.net.poller.x from above or beside it"),
        ("net.sockets", "from anyecho.net import poller", "imports anyecho.net.poller from above or beside it"),
        ("net.sockets", "from .poller import x", "imports anyecho.net.poller.x from above or beside it"),
        ("net.sockets", "from . import poller", "imports anyecho.net.poller from above or beside it"),
        ("net.sockets", "from ..cli.main import x", "imports anyecho.cli.main.x from above or beside it"),
        ("net", "from anyecho.net.poller import x", "imports anyecho.net.poller.x from above or beside it"),
        ("net", "from .poller import x", "imports anyecho.net.poller.x from above or beside it"),
        ("errors", "from .units import x", "imports anyecho.units.x from above or beside it"),
        (
            "net.sockets",
            "from anyecho import net\nnet.poller",
            "imports anyecho.net.poller from above or beside it",
        ),
        # Neighbours.
        (
            "server.server",
            "from anyecho.measure.options import x",
            "imports anyecho.measure.options.x from above or beside it",
        ),
        (
            "measure.client",
            "from anyecho.server import options",
            "imports anyecho.server.options from above or beside it",
        ),
        ("measure.client", "from anyecho import server", "imports anyecho.server from above or beside it"),
        # Restricted names.
        ("backends", "import asyncio", "uses asyncio"),
        ("net.poller", "import asyncio.events", "uses asyncio.events"),
        ("net.poller", "from trio.lowlevel import checkpoint", "uses trio.lowlevel.checkpoint"),
        ("cli.main", "import uvloop as fast", "uses uvloop"),
        ("server.tasks", "import socket", "uses socket"),
        ("server.tasks", "from socket import AF_INET", "uses socket.AF_INET"),
        ("cli.main", "import ssl", "uses ssl"),
        ("measure.client", "import select", "uses select"),
        ("server.server", "import cyclopts", "uses cyclopts"),
        ("units", "from rich.console import Console", "uses rich.console.Console"),
        ("server.server", "import signal", "uses signal"),
        ("server.server", "from anyio import open_signal_receiver", "uses anyio.open_signal_receiver"),
        ("server.server", "import anyio\nanyio.open_signal_receiver", "uses anyio.open_signal_receiver"),
        ("net.accept", "from anyio import wait_readable", "uses anyio.wait_readable"),
        ("net.stream", "import anyio as io\nio.wait_writable(1)", "uses anyio.wait_writable"),
        ("server.stats", "print(1)", "uses print"),
        ("__main__", "print(1)", "uses print"),
        ("server.stats", "write = print", "uses print"),
        ("server.stats", "import sys\nsys.exit(1)", "uses sys.exit"),
        ("server.stats", "from sys import exit as leave", "uses sys.exit"),
        ("net.connect", "import random\nrandom.random()", "uses random.random"),
        ("cli.main", "from random import choice", "uses random.choice"),
        ("cli.main", "import random\ndef f(): return random.choice", "uses random.choice"),
        # When.
        ("cli.serve", "def f():\n    import json", "imports json inside a function"),
        (
            "cli.serve",
            "class A:\n    async def f(self):\n        from os import path",
            "imports os.path inside a function",
        ),
        ("errors", "try:\n    import ssl\nexcept ImportError:\n    pass", "uses ssl"),
        ("errors", "if TYPE_CHECKING:\n    pass\nelse:\n    import ssl", "uses ssl"),
        ("errors", "if not TYPE_CHECKING:\n    import ssl", "uses ssl"),
    ],
)
def test_a_violation_is_found(module: str, source: str, violation: str) -> None:
    assert set(violations(module, source)) == {violation}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("units", "from anyecho.errors import UnitError"),
        ("net.connect", "from anyecho.net.stream import PolledStream\nfrom .names import resolve"),
        ("net.stream", "import anyecho.net.poller"),
        ("net.sockets", "from .. import address"),
        (
            "server.server",
            "from anyecho.net.accept import x\nfrom anyecho.server.tasks import y\nfrom anyecho.echo import echo",
        ),
        ("cli.main", "from anyecho.server.server import x\nfrom anyecho.measure.client import y"),
        ("net.fallback", "import select, socket, ssl\nfrom anyio import wait_readable, wait_writable"),
        ("cli.main", "import cyclopts, rich, signal, sys\nprint(1)\nsys.exit(1)"),
        ("__main__", "import sys\ndef f():\n    from anyecho.cli.main import main\n    sys.exit(1)"),
        ("", "def f():\n    from importlib import import_module"),
        ("server.tasks", "if TYPE_CHECKING:\n    import socket\ndef f(sock: socket.socket) -> None: ..."),
        ("errors", "import typing\nif typing.TYPE_CHECKING:\n    from anyecho.cli.main import app"),
        ("server.stats", "def f(signal, select):\n    return signal.socket, select.print"),
        ("server.stats", "import sys\nsys.stdout"),
        ("server.stats", "import selectors, socketserver"),
        ("server.stats", "import random\nrandom.Random(7).choice"),
        ("server.stats", "from random import Random\nRandom(7)"),
    ],
)
def test_allowed_imports_are_not_reported(module: str, source: str) -> None:
    assert list(violations(module, source)) == []
