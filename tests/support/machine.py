"""Features of this machine, found by trying: address families, programs, network namespaces.

A test that needs an absent feature is skipped, with the feature as the reason.
"""

from __future__ import annotations

__all__ = (
    "LOOPBACK_HOSTS",
    "needs_descriptors",
    "needs_dual_sockets",
    "needs_ipv6",
    "netcat",
    "network_namespace",
    "short_directory",
)

import os
import resource
import shutil
import socket
import subprocess
import tempfile
from functools import cache

import pytest


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


needs_ipv6 = pytest.mark.skipif(not _binds_ipv6(), reason="::1 cannot be bound here")
needs_dual_sockets = pytest.mark.skipif(
    not (_binds_ipv6() and _binds_ipv6(socket.SOCK_DGRAM, "::", dual=True)),
    reason="no dual-stack socket can be bound here",
)

#: A host of each family, for `pytest.mark.parametrize`.
LOOPBACK_HOSTS = ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)]


def needs_descriptors(count: int) -> None:
    """Raise the descriptor limit to at least `count`; skip if the hard limit is lower (``ulimit -Hn``)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        pytest.skip(f"{count} descriptors are needed, and the hard limit is {hard}")
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


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
    if shutil.which("nc") is None:
        pytest.skip("nc is not installed")
    finished = subprocess.run(["nc", "-h"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    text = finished.stdout + finished.stderr
    for program, sign in {"OpenBSD": "-N\t", "Ncat": "Ncat ", "traditional": "[v1.10"}.items():
        if sign in text:
            return program

    return pytest.skip(f"unknown kind of nc, by its help: {text.partition(chr(10))[0]!r}")


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
        pytest.skip("no network namespace can be made and prepared here")

    return prepare
