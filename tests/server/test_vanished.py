"""A peer that vanishes without a FIN or a RST, as behind a link that goes down."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.machine import network_namespace
from tests.support.process import TIMEOUT


@pytest.mark.fault(
    row=24, injected="a link goes down behind an idle peer and a peer with pending echo; limits of 1 s"
)
@pytest.mark.by_turns("engine")
def test_keepalive_and_the_user_timeout_close_connections_of_a_vanished_peer(backend: str, engine: str) -> None:
    command = [*network_namespace("link set lo up"), sys.executable, "-m", "tests.server.vanished", backend, engine]
    ended = subprocess.run(command, stdout=subprocess.PIPE, timeout=2 * TIMEOUT, check=True, text=True)
    assert ended.stdout == "[('broken', 1), ('write', 1)]\n"
