"""Features of this machine, found by trying: address families, programs, network namespaces.

A test that needs an absent feature is skipped, with the feature as the reason: ``--strict-skips`` allows no other.
"""

from __future__ import annotations

__all__ = (
    "ABSENT",
    "LOOPBACK_HOSTS",
    "needs",
    "needs_descriptors",
    "needs_dual_sockets",
    "needs_epoll",
    "needs_ipv6",
    "needs_linux",
    "needs_program",
    "needs_socket_filters",
    "netcat",
    "network_namespace",
    "program",
    "short_directory",
    "skip",
)

import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from functools import cache
from typing import NoReturn

import pytest

from anyecho.net.syn_filter import drop_syns

#: The beginning of each reason.
ABSENT = "not on this machine: "


def skip(what: str) -> NoReturn:
    """Skip the test, because this machine lacks `what`."""
    pytest.skip(ABSENT + what)


def needs(present: bool, what: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test unless this machine has `what`."""
    return pytest.mark.skipif(not present, reason=ABSENT + what)


def needs_program(name: str) -> pytest.MarkDecorator:
    return needs(shutil.which(name) is not None, name)


def program(name: str) -> str:
    """Return `name`; skip if no program has it."""
    return name if shutil.which(name) is not None else skip(name)


@cache
def _binds_ipv6(kind: socket.SocketKind = socket.SOCK_STREAM, host: str = "::1", *, dual: bool = False) -> bool:
    # socket.has_ipv6 is about how Python was built, has_dualstack_ipv6() about an option: both are true where
    # the sysctl disable_ipv6 has taken every address.
    try:
        with socket.socket(socket.AF_INET6, kind) as sock:
            if dual:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((host, 0))
    except OSError:
        return False

    return True


needs_ipv6 = needs(_binds_ipv6(), "IPv6")
needs_dual_sockets = needs(_binds_ipv6() and _binds_ipv6(socket.SOCK_DGRAM, "::", dual=True), "dual-stack sockets")
#: Evaluated for each test, after ``--fallback`` has removed epoll.
needs_epoll = pytest.mark.skipif("not __import__('select').__dict__.get('epoll')", reason=ABSENT + "epoll")
needs_linux = needs(sys.platform == "linux", "Linux")

#: A host of each family, for `pytest.mark.parametrize`.
LOOPBACK_HOSTS = ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)]


def needs_descriptors(count: int) -> None:
    """Raise the descriptor limit to at least `count`; skip if the hard limit is lower (``ulimit -Hn``)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        skip(f"{count} descriptors (the hard limit is {hard})")
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def needs_socket_filters() -> None:
    """Skip if this user may attach no socket filter."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        if not drop_syns(sock):
            skip("socket filters for this user")


def short_directory() -> tempfile.TemporaryDirectory[str]:
    """Return a new directory whose path leaves room for a name in the 107 bytes of a Unix socket's address.

    The directories of pytest are too long, and so are those in a long TMPDIR.
    """
    place = "/tmp" if len(os.fsencode(tempfile.gettempdir())) > 60 else None
    directory = tempfile.TemporaryDirectory(prefix="ae", dir=place, ignore_cleanup_errors=True)
    os.chmod(directory.name, 0o700)  # the umask may forbid access to all but root
    return directory


@cache
def netcat() -> str:
    """Return which program the command ``nc`` is: OpenBSD's, Ncat or the traditional one; skip for any other.

    Each needs another flag to half-close at the end of its input.
    """
    command = [program("nc"), "-h"]
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    text = finished.stdout + finished.stderr
    for name, sign in {"OpenBSD": "-N\t", "Ncat": "Ncat ", "traditional": "[v1.10"}.items():
        if sign in text:
            return name

    skip(f"a known kind of nc (this is {text.partition(chr(10))[0]!r})")


@cache
def network_namespace(setup: str) -> list[str]:
    """Return a command prefix that runs a program in a new network namespace; skip if none can be made.

    `setup` is a batch for ip(8), which prepares the namespace.
    """
    unshare = ["unshare", "--map-root-user", "--net"]
    prepare = [*unshare, "sh", "-c", 'printf "%s\\n" "$0" | ip -batch - && exec "$@"', setup]
    try:
        subprocess.run([*prepare, "true"], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        skip("the right to make a network namespace")

    return prepare
