"""Code for ``before=`` of `Processes.start`: event loops and name servers that block, and report it."""

from __future__ import annotations

__all__ = ("DEAD_NAME_SERVER", "REPORT_SIGNALS", "STUCK", "STUCK_SEND")

#: A resolver that never returns, and reports each call.
DEAD_NAME_SERVER = """
import os, socket, threading
look_up = socket.getaddrinfo
def stuck(host, *args, **named):
    if host != "slow" or named.get("flags"):
        return look_up(host, *args, **named)
    os.write(2, b"resolving\\n")
    threading.Event().wait()
socket.getaddrinfo = stuck
"""

#: A server whose event loop blocks at the first connection and reports it.
STUCK = """
import os, time
from anyecho.server.admission import Admission
def stuck(self, *args):
    os.write(2, b"stuck\\n")
    while True:
        time.sleep(0.05)  # a signal just before a longer sleep would not end it
Admission.admit = stuck
"""

#: A client whose event loop blocks at the first echo and reports it.
STUCK_SEND = """
import os, time
from anyecho.client.matcher import OutstandingBytes
def match(self, chunk):
    os.write(2, b"stuck\\n")
    while True:
        time.sleep(0.05)  # a signal just before a longer sleep would not end it
OutstandingBytes.match = match
"""

#: Reports each handled signal on standard error, because the kernel merges two pending signals of a kind.
REPORT_SIGNALS = """
import os
from anyecho.cli.signals import Signals
on_signal = Signals.on_signal
def told(self, *args):
    on_signal(self, *args)
    os.write(2, b"noted\\n")
Signals.on_signal = told
"""
