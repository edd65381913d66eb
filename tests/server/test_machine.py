"""Random actions of peers: each echo is a prefix of the bytes sent, and complete after a half-close."""

from __future__ import annotations

import os
import socket
from contextlib import AbstractContextManager
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule

from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.conftest import BACKENDS
from tests.net.pairs import reset
from tests.support.peers import dial


class Peer:
    """A plain socket, with the bytes sent on it and returned."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sent = b""
        self.returned = b""
        self.half_closed = False

    def send(self, payload: bytes) -> None:
        # No more than the kernel takes at once: a peer that blocks here would not be able to read.
        self.sock.setblocking(False)
        try:
            self.sent += payload[: self.sock.send(payload)]
        except BlockingIOError:
            pass
        finally:
            self.sock.settimeout(10)

    def receive(self, at_most: int) -> None:
        chunk = self.sock.recv(at_most)
        assert chunk, "the server closed first"
        self.returned += chunk
        assert self.sent.startswith(self.returned)


class Machine(RuleBasedStateMachine):
    """Peers that connect, send, receive, half-close and reset, while the server runs in another thread."""

    backend: Any
    peers = Bundle("peers")

    @initialize()
    def start(self) -> None:
        name, options = self.backend
        self.portal_context = start_blocking_portal(name, options)
        self.portal: BlockingPortal = self.portal_context.__enter__()
        options_ = ServeOptions(linger=0.2, max_connections=50)
        self.server_context: AbstractContextManager[Server] = self.portal.wrap_async_context_manager(
            open_server("tcp://127.0.0.1:0", options=options_)
        )
        self.server = self.server_context.__enter__()
        self.all: list[Peer] = []

    @rule(target=peers)
    def connect(self) -> Peer:
        peer = Peer(dial(self.server.addresses[0]))
        self.all.append(peer)
        return peer

    @rule(peer=peers, size=st.integers(1, 200_000))
    def send(self, peer: Peer, size: int) -> None:
        if not peer.half_closed:
            peer.send(os.urandom(size))

    @rule(peer=peers, at_most=st.integers(1, 100_000))
    def receive(self, peer: Peer, at_most: int) -> None:
        if len(peer.returned) < len(peer.sent):
            peer.receive(at_most)

    @rule(peer=peers)
    def half_close(self, peer: Peer) -> None:
        if not peer.half_closed:
            peer.sock.shutdown(socket.SHUT_WR)
            peer.half_closed = True

    @rule(peer=consumes(peers))
    def finish(self, peer: Peer) -> None:
        self.half_close(peer)
        while chunk := peer.sock.recv(65536):
            peer.returned += chunk
        assert peer.returned == peer.sent
        peer.sock.close()

    @rule(peer=consumes(peers))
    def reset(self, peer: Peer) -> None:
        reset(peer.sock)

    @rule(peer=consumes(peers))
    def leave(self, peer: Peer) -> None:
        peer.sock.close()

    def teardown(self) -> None:
        if hasattr(self, "server"):
            for peer in self.all:
                peer.sock.close()
            self.server_context.__exit__(None, None, None)
            self.portal_context.__exit__(None, None, None)
            assert self.server.stats.closed.total() == self.server.stats.accepted
            assert self.server.stats.closed["error"] == 0


@pytest.mark.parametrize("name", BACKENDS)
def test_every_echo_is_a_prefix_of_the_bytes_sent(name: str) -> None:
    class OnBackend(Machine):
        backend = BACKENDS[name]

    OnBackend.TestCase.settings = settings(
        max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
    OnBackend.TestCase().runTest()
