"""The measured servers: the command of each, its versions, or why it is missing."""

from __future__ import annotations

__all__ = ("NAMES", "Server", "find")

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import anyecho
from process import PORT

PEERS = Path(__file__).parent / "peers"
BACKENDS = ("asyncio", "uvloop", "trio")
ENGINES = ("events", "tasks")


@dataclass(frozen=True, kw_only=True)
class Server:
    """Name, libraries with versions, and command of a server; without a command, the reason."""

    name: str
    version: str = ""
    command: tuple[str, ...] = ()
    absent: str = ""


#: Names in ``peers/echo.py``, and the packages that each needs.
PYTHON = {
    "uvloop-protocol": ("uvloop",),
    "uvloop-streams": ("uvloop",),
    "asyncio-protocol": (),
    "asyncio-streams": (),
    "asyncio-example": (),
    "trio-serve-tcp": ("trio",),
    "anyio-asyncio": ("anyio",),
    "anyio-uvloop": ("anyio", "uvloop"),
    "anyio-trio": ("anyio", "trio"),
}
ANYECHO = {f"anyecho-{engine}-{backend}": (engine, backend) for engine in ENGINES for backend in BACKENDS}
#: All servers, in the order of the tables.
NAMES = (*ANYECHO, "c-epoll", "go", "node", "socat", *PYTHON)


def find(name: str, folder: Path) -> Server:
    """Return the server of that name; compile it into `folder` if necessary."""
    if name in ANYECHO:
        return _anyecho(name, *ANYECHO[name])
    if name in PYTHON:
        return _of_packages(name, PYTHON[name], (str(PEERS / "echo.py"), name))
    if name == "c-epoll":
        return _compiled(name, ("cc", "-O2", "-o"), "echo.c", folder, version=("cc", "--version"))
    if name == "go":
        return _compiled(name, ("go", "build", "-o"), "echo.go", folder, version=("go", "version"))

    return _node() if name == "node" else _socat()


def _anyecho(name: str, engine: str, backend: str) -> Server:
    packages = ("anyecho", "anyio", *([] if backend == "asyncio" else [backend]))
    # -P, to import the same anyecho as the load, and not one in the current directory.
    serve = ("-P", "-m", "anyecho", "serve", "-b", "tcp://127.0.0.1:0")
    return _of_packages(name, packages, (*serve, "--backend", backend, "--engine", engine))


def _of_packages(name: str, packages: tuple[str, ...], arguments: tuple[str, ...]) -> Server:
    if missing := [package for package in packages if find_spec(package) is None]:
        return Server(name=name, absent=f"{missing[0]} is not installed")

    words = [f"{package} {_version(package)}" for package in packages]
    text = ", ".join([*words, f"Python {platform.python_version()}"])
    return Server(name=name, version=text, command=(sys.executable, *arguments))


def _version(package: str) -> str:
    if package == "anyecho":
        return anyecho.__version__  # of the checkout, installed or not
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def _compiled(
    name: str, compiler: tuple[str, ...], source: str, folder: Path, *, version: tuple[str, ...]
) -> Server:
    if shutil.which(compiler[0]) is None:
        return Server(name=name, absent=f"{compiler[0]} is not installed")

    binary = folder / name
    # For Go: a single file without a module, and no cache in the home directory.
    environment = os.environ | {"GO111MODULE": "off", "GOCACHE": str(folder / "go-cache"), "HOME": str(folder)}
    built = subprocess.run(
        [*compiler, str(binary), str(PEERS / source)], capture_output=True, text=True, env=environment, check=False
    )
    if built.returncode:
        return Server(name=name, absent=f"it does not compile: {built.stderr.strip().splitlines()[-1]}")

    return Server(name=name, version=_first_line(*version), command=(str(binary),))


def _node() -> Server:
    if shutil.which("node") is None:
        return Server(name="node", absent="node is not installed")

    return Server(
        name="node", version=f"Node {_first_line('node', '--version')}", command=("node", str(PEERS / "echo.mjs"))
    )


def _socat() -> Server:
    if shutil.which("socat") is None:
        return Server(name="socat", absent="socat is not installed")

    # With its default block size of 8 KiB: with larger blocks it sometimes deadlocks on its own pipe.
    listen = f"TCP4-LISTEN:{PORT},bind=127.0.0.1,reuseaddr,fork,nodelay,backlog=4096"
    return Server(
        name="socat",
        version=" ".join(_first_line("socat", "-V", line=1).split()[:3]),
        command=("socat", listen, "PIPE"),
    )


def _first_line(*command: str, line: int = 0) -> str:
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return output[line] if len(output) > line else "of unknown version"
