"""Run by a test in a network namespace: ``anyecho send`` to a server behind a router, over a link with a small MTU.

Starts namespaces for the router and the server, and ``anyecho serve`` in the latter. Then runs its arguments as
``anyecho send ADDRESS ...`` with a payload of 1,400 bytes for each, and prints exit status, output and errors.
"""

from __future__ import annotations

__all__ = ("NO_LINKS",)

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

#: The exit status where the namespaces cannot be made or linked.
NO_LINKS = 77
#: Hosts of the server, by family.
_HOSTS = {"4": "10.9.2.2", "6": "[2001:db8:2::2]"}
#: IPv6 requires that every link carries 1,280 bytes.
MTU = 1280


@contextmanager
def namespace() -> Iterator[int]:
    """Run an idle process in a new network namespace during the block. Yields its process ID."""
    idle = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert idle.stdin is not None
    assert idle.stdout is not None
    try:
        idle.stdout.readline()
        yield idle.pid
    finally:
        idle.stdin.close()
        idle.stdout.close()
        idle.wait()


def inside(pid: int, *command: str) -> list[str]:
    return ["nsenter", "--target", str(pid), "--net", *command]


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def link(router: int, server: int) -> None:
    """Connect this namespace to the router, and the router to the server by a link with a small MTU."""
    run("ip", "link", "add", "near", "type", "veth", "peer", "name", "left", "netns", str(router))
    run(*inside(router, "ip", "link", "add", "right", "type", "veth", "peer", "name", "far", "netns", str(server)))
    for pid, name, host in ((0, "near", 2), (router, "left", 1), (router, "right", 1), (server, "far", 2)):
        net = 1 if name in ("near", "left") else 2
        enter = inside(pid) if pid else []
        if net == 2:
            run(*enter, "ip", "link", "set", name, "mtu", str(MTU))
        run(*enter, "ip", "address", "add", f"10.9.{net}.{host}/24", "dev", name)
        run(*enter, "ip", "address", "add", f"2001:db8:{net}::{host}/64", "dev", name, "nodad")
        run(*enter, "ip", "link", "set", name, "up")
    for enter, net in (([], 1), (inside(server), 2)):
        run(*enter, "ip", "route", "add", "default", "via", f"10.9.{net}.1")
        run(*enter, "ip", "route", "add", "default", "via", f"2001:db8:{net}::1")
    run(*inside(router, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"))


def main(family: str, *arguments: str) -> None:
    with ExitStack() as opened:
        try:
            router, far = opened.enter_context(namespace()), opened.enter_context(namespace())
            link(router, far)
        except (OSError, subprocess.CalledProcessError):
            sys.exit(NO_LINKS)

        anyecho = [sys.executable, "-m", "anyecho"]
        host = _HOSTS[family]
        server = subprocess.Popen(
            inside(far, *anyecho, "serve", "--bind", f"udp://{host}:7007"), stdout=subprocess.PIPE
        )
        opened.callback(server.wait)
        opened.callback(server.terminate)
        assert server.stdout is not None
        with server.stdout:
            server.stdout.readline()
            sent = subprocess.run(
                [*anyecho, "send", f"udp://{host}:7007", *arguments], capture_output=True, text=True, check=False
            )
        json.dump([sent.returncode, sent.stdout, sent.stderr], sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
