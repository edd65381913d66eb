"""Who takes part: how each server is started, what it is, and why it is absent if it is."""

from __future__ import annotations

__all__ = ("Server", "catalogue")

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from process import PORT

PEERS = Path(__file__).parent / "peers"
BACKENDS = ("asyncio", "uvloop", "trio")
ENGINES = ("events", "tasks")


@dataclass(frozen=True, kw_only=True)
class Server:
    """Name, the libraries and versions it is made of, and its command; or no command, and the reason."""

    name: str
    version: str = ""
    command: tuple[str, ...] = ()
    absent: str = ""


def catalogue(folder: Path) -> list[Server]:
    """All of them, in the order of the tables. What has to be compiled is compiled into `folder`."""
    return [
        *(_anyecho(engine, backend) for engine in ENGINES for backend in BACKENDS),
        _c(folder),
        _go(folder),
        _node(),
        _socat(),
        *(_python(name, *packages) for name, packages in PYTHON.items()),
    ]


#: The names in ``peers/echo.py``, and what each needs besides Python.
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


def _anyecho(engine: str, backend: str) -> Server:
    packages = ("anyecho", "anyio", *([] if backend == "asyncio" else [backend]))
    # With -P it is the same anyecho as that of the load, not the one of the folder that we happen to be in.
    command = ("-P", "-m", "anyecho", "serve", "-b", "tcp://127.0.0.1:0", "--backend", backend, "--engine", engine)
    return _of_packages(f"anyecho-{engine}-{backend}", packages, command)


def _python(name: str, *packages: str) -> Server:
    return _of_packages(name, packages, (str(PEERS / "echo.py"), name))


def _of_packages(name: str, packages: tuple[str, ...], arguments: tuple[str, ...]) -> Server:
    if missing := [package for package in packages if find_spec(package) is None]:
        return Server(name=name, absent=f"{missing[0]} is not installed")

    words = [f"{package} {_version(package)}" for package in packages]
    text = ", ".join([*words, f"Python {platform.python_version()}"])
    return Server(name=name, version=text, command=(sys.executable, *arguments))


def _version(package: str) -> str:
    if package == "anyecho":
        from anyecho import __version__  # the checkout's, installed or not

        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def _c(folder: Path) -> Server:
    return _compiled("c-epoll", ("cc", "-O2", "-o"), "echo.c", folder, version=("cc", "--version"))


def _go(folder: Path) -> Server:
    return _compiled("go", ("go", "build", "-o"), "echo.go", folder, version=("go", "version"))


def _compiled(
    name: str, compiler: tuple[str, ...], source: str, folder: Path, *, version: tuple[str, ...]
) -> Server:
    if shutil.which(compiler[0]) is None:
        return Server(name=name, absent=f"{compiler[0]} is not installed")

    binary = folder / name
    # For Go: one file, without a module, and nothing left in the home of whoever runs this.
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

    listen = f"TCP4-LISTEN:{PORT},bind=127.0.0.1,reuseaddr,fork,nodelay,backlog=4096"
    return Server(
        name="socat",
        version=" ".join(_first_line("socat", "-V", line=1).split()[:3]),
        command=("socat", "-b65536", listen, "PIPE"),
    )


def _first_line(*command: str, line: int = 0) -> str:
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return output[line] if len(output) > line else "of unknown version"
