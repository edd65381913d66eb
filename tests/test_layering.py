"""The layering of the package: allowed imports, and modules that only some folders may use.

The source is parsed, not imported. Imports under ``if TYPE_CHECKING:`` count too: a type is a dependency.
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
    "throttle": 0,
    "portal": 0,
    "streams": 1,
    "clock": 1,
    "options": 1,
    "units": 1,
    "uri": 1,
    "validation": 1,
    "address": 2,
    "backends": 2,
    "codec": 2,
    "echo": 1,
    "handlers": 2,
    "net": 3,
    "systemd": 4,
    "faults": 4,
    "client": 5,
    "server": 5,
    "measure": 6,
    "threaded": 6,
    "control_thread": 7,
    "cli": 7,
    "pytest_plugin": 7,
    "__main__": 8,
    "": 9,
}

#: Within a folder, a module imports from what is listed before it; a folder within one is listed as a module is.
FOLDERS = {
    "net": (
        "descriptors",
        "threads",
        "sockets",
        "names",
        "resolve",
        "own_address",
        "error_queue",
        "wire",
        "inherit",
        "accepted",
        "trio_waiter",
        "driver",
        "readiness",
        "fallback",
        "lifeline",
        "shared_counts",
        "poller",
        "timerfd",
        "timer",
        "exclusive",
        "stream",
        "abrupt",
        "tls",
        "linger",
        "proxy",
        "udp",
        "bind",
        "syn_filter",
        "unix",
        "listen",
        "accept",
        "connect",
        "http",
    ),
    "net.tls": (
        "errors",
        "outgoing",
        "records",
        "wire",
        "attributes",
        "transfer",
        "files",
        "generated",
        "contexts",
        "stream",
        "connect",
    ),
    "net.proxy": ("header", "reader", "trust"),
    "net.udp": ("counts", "recvfrom", "mmsg", "altered", "echo", "stream"),
    "systemd": ("activation", "notify"),
    "faults": (
        "fault",
        "spoiled",
        "latency",
        "delays",
        "ends",
        "contents",
        "datagrams",
        "tls",
        "plan",
        "chain",
        "spec",
    ),
    "client": ("options", "source", "matcher", "exchange", "datagrams", "client"),
    "server": (
        "options",
        "worker_options",
        "unused",
        "opening",
        "phases",
        "reasons",
        "forwarding",
        "recorder",
        "totals",
        "timings",
        "stats",
        "limits",
        "http_listener",
        "peer_log",
        "connection",
        "reaper",
        "tasks",
        "handled",
        "events",
        "tls_events",
        "admission",
        "udp_guard",
        "metrics",
        "admin",
        "control_body",
        "toxics",
        "listening",
        "proxies",
        "monitor",
        "server",
        "answers",
        "control",
        "supervised",
        "worker",
        "launch",
        "supervisor",
    ),
    "measure": (
        "options",
        "series_options",
        "shard_options",
        "schedule",
        "traffic",
        "load_connection",
        "datagram_load",
        "pacer",
        "drivers",
        "opening",
        "quantiles",
        "progress",
        "control",
        "probes",
        "ping_figures",
        "ping_options",
        "ping_streams",
        "ping_datagrams",
        "ping",
        "statistics",
        "histogram",
        "figures",
        "omission",
        "result",
        "samples",
        "generator",
        "machine",
        "outcome",
        "own_server",
        "bench",
        "checks",
        "parts",
        "text",
        "merge",
        "shard_child",
        "shard",
        "places",
        "shards",
        "hdr_text",
        "metrics",
        "compare",
        "gates",
        "comparison_text",
        "svg",
        "charts",
        "time_charts",
        "find_rate",
        "series",
        "dask_workers",
        "division",
        "series_text",
        "page",
    ),
    "cli": (
        "default_action",
        "streams",
        "signals",
        "log_formats",
        "logs",
        "environment",
        "config_file",
        "help_pages",
        "flags",
        "mistakes",
        "output",
        "ping_lines",
        "ping_run",
        "ping",
        "handler",
        "send",
        "job",
        "serving",
        "worker",
        "supervise",
        "serve",
        "output_options",
        "results",
        "report_run",
        "report",
        "progress",
        "bench_run",
        "bench",
        "main",
    ),
}

#: Folders whose ``__init__`` collects public names, and so comes last in its folder.
PUBLIC = ("faults",)

#: Names that only the listed folders or modules may use; a module includes everything in it.
RESTRICTED = {
    "asyncio": ("net.driver",),
    "trio": ("net.trio_waiter",),
    "uvloop": (),
    "socket": ("net", "systemd"),
    "ssl": ("net",),
    "select": ("net",),
    "anyio.wait_readable": ("net.driver", "net.fallback"),
    "anyio.wait_writable": ("net.fallback",),
    "sniffio": ("net.driver",),
    "cyclopts": ("cli",),
    "rich": ("cli",),
    "h11": ("net.http",),
    "hdrh": ("measure.histogram",),
    "prometheus_client": ("server.metrics",),
    "distributed": ("measure.dask_workers",),
    "dask": (),
    "signal": ("cli", "server.worker"),  # received by the command line, sent to workers
    "anyio.open_signal_receiver": ("cli",),
    "print": ("cli",),
    "sys.exit": ("cli", "__main__"),
}

#: The names are lazy here; Ctrl-C may come there while the command line is being imported; trustme, distributed and
#: prometheus_client are extras; ctypes is missing from a Python that was built without libffi; h11 and rich are
#: slow to import, and needed for --admin and help only.
MAY_IMPORT_LATE = (
    "pytest_plugin",
    "cli.bench",
    "cli.config_file",
    "cli.report",
    "cli.ping",
    "measure.dask_workers",
    "",
    "__main__",
    "cli.main",
    "net.udp.echo",
    "net.driver",
    "net.timer",
    "net.tls.generated",
    "faults",
    "cli.job",
    "cli.serve",
    "cli.serving",
    "server.admin",
)


def is_within(name: str, outer: str) -> bool:
    return f"{name}.".startswith(f"{outer}.")


def place_of(module: str) -> tuple[int, str, tuple[int, ...]] | None:
    """Floor, room, and the places of the folders within it and of the module in the last of them.

    ``__init__`` comes first in its folder unless it is `PUBLIC`, and so imports none of the other modules there.
    """
    room, *rest = module.split(".")
    if room not in LAYERS:
        return None

    places: list[int] = []
    folder = room
    for name in rest:
        if name not in FOLDERS.get(folder, ()):
            return None
        places.append(FOLDERS[folder].index(name) + 1)
        folder = f"{folder}.{name}"
    if folder in FOLDERS:
        places.append(len(FOLDERS[folder]) + 1 if folder in PUBLIC else 0)
    return LAYERS[room], room, tuple(places)


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

    `late` holds the imports inside functions, `typed` those of types only (``if TYPE_CHECKING:``).
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self.used: set[str] = set()
        self.typed: set[str] = set()
        self.late: set[str] = set()
        self._depth = 0
        self._meaning = {name: name for name in dir(builtins)}

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            types = Reader(self.package)
            types.visit(ast.Module(node.body, []))
            self.typed |= types.used
            for each in node.orelse:
                self.visit(each)
        else:
            self.generic_visit(node)

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
    for name in sorted(reader.used | reader.typed):
        other = module_of(name)
        if other is not None and not may_import(module, other):
            yield f"imports {name} from above or beside it"

    # A type of a restricted module may be named anywhere.
    for name in sorted(reader.used):
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
            "from anyecho.client.options import x",
            "imports anyecho.client.options.x from above or beside it",
        ),
        (
            "client.client",
            "from anyecho.server import options",
            "imports anyecho.server.options from above or beside it",
        ),
        ("client.client", "from anyecho import server", "imports anyecho.server from above or beside it"),
        ("net.tls.errors", "from .records import x", "imports anyecho.net.tls.records.x from above or beside it"),
        ("net.stream", "from .tls.stream import x", "imports anyecho.net.tls.stream.x from above or beside it"),
        ("net.udp.echo", "from anyecho.net import bind", "imports anyecho.net.bind from above or beside it"),
        (
            "net.readiness",
            "if TYPE_CHECKING:\n    from anyecho.net.poller import Poller",
            "imports anyecho.net.poller.Poller from above or beside it",
        ),
        # Restricted names.
        ("backends", "import asyncio", "uses asyncio"),
        ("net.poller", "import asyncio.events", "uses asyncio.events"),
        ("net.poller", "from trio.lowlevel import checkpoint", "uses trio.lowlevel.checkpoint"),
        ("cli.main", "import uvloop as fast", "uses uvloop"),
        ("server.tasks", "import socket", "uses socket"),
        ("server.tasks", "from socket import AF_INET", "uses socket.AF_INET"),
        ("cli.main", "import ssl", "uses ssl"),
        ("client.client", "import select", "uses select"),
        ("server.server", "import cyclopts", "uses cyclopts"),
        ("server.server", "import h11", "uses h11"),
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
        ("cli.send", "def f():\n    import json", "imports json inside a function"),
        (
            "cli.send",
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
        ("cli.main", "from anyecho.server.server import x\nfrom anyecho.client.client import y"),
        ("net.fallback", "import select, socket, ssl\nfrom anyio import wait_readable, wait_writable"),
        ("cli.main", "import cyclopts, rich, signal, sys\nprint(1)\nsys.exit(1)"),
        ("__main__", "import sys\ndef f():\n    from anyecho.cli.main import main\n    sys.exit(1)"),
        ("", "def f():\n    from importlib import import_module"),
        ("server.tasks", "if TYPE_CHECKING:\n    import socket\ndef f(sock: socket.socket) -> None: ..."),
        ("cli.main", "import typing\nif typing.TYPE_CHECKING:\n    from anyecho.server.server import Server"),
        ("server.stats", "def f(signal, select):\n    return signal.socket, select.print"),
        ("server.stats", "import sys\nsys.stdout"),
        ("server.stats", "import selectors, socketserver"),
        ("server.stats", "import random\nrandom.Random(7).choice"),
        ("server.stats", "from random import Random\nRandom(7)"),
    ],
)
def test_allowed_imports_are_not_reported(module: str, source: str) -> None:
    assert list(violations(module, source)) == []
