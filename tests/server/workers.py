"""Stand-ins for workers: small programs that speak to a supervisor, and misbehave as told."""

from __future__ import annotations

__all__ = ("READY", "SERVE", "stand_in")

import sys
from typing import Any

from anyecho.server.worker import Launch

#: What each program begins with. Its last argument is the number of its lifeline.
_BEGIN = """
import json, os, signal, socket, sys, time
lifeline = socket.socket(fileno=int(sys.argv[-1]))
states = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify_socket = os.environ["NOTIFY_SOCKET"]
if notify_socket.startswith("@"):
    notify_socket = "\\0" + notify_socket[1:]

def tell(state):
    states.sendto(state, notify_socket)

def send(**message):
    lifeline.sendall(json.dumps(message).encode() + b"\\n")
"""
READY = """
tell(b"READY=1")
"""
#: Serves until SIGTERM, or until the supervisor is gone.
SERVE = """
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
tell(b"READY=1")
while lifeline.recv(65536):
    pass
"""


def stand_in(program: str, **launch: Any) -> Launch:
    """Return the launch of a worker that runs `program`."""
    command = [sys.executable, "-I", "-S", "-c", _BEGIN + program]
    return Launch(**{"command": command, "descriptors": (), "job": {}, "heartbeat_timeout": 30.0, **launch})
