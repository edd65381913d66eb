"""Rows 11 to 13 over TLS, with real processes: KeyUpdate, and new or broken certificates."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.scene import time_limit
from tests.faults.table import Observed, Scene, injects
from tests.support.certificates import Files, files_in
from tests.support.process import TIMEOUT, Process, port_of

TLS = "tls://127.0.0.1:0"


def _serve(scene: Scene, files: Files) -> Process:
    certificate = ("--ssl-certfile", str(files.cert), "--ssl-keyfile", str(files.key))
    return scene.processes.serve("-b", TLS, "--backend", scene.backend, *certificate, "--log-level", "info")


@injects(11, "openssl's client sends a KeyUpdate, then requests one too, between messages")
def key_update(scene: Scene) -> Observed:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    process = _serve(scene, files_in(scene.directory))
    where = f"127.0.0.1:{port_of(process.addresses[0])}"
    command = ["openssl", "s_client", "-connect", where, "-tls1_3", "-msg"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, **pipes) as client, ExitStack() as opened:
        opened.callback(client.kill)
        assert client.stdin is not None
        assert client.stdout is not None
        for word, answer in {
            b"hello\n": b"\nhello\n",
            b"k\n": b">>> TLS 1.3, Handshake [length 0005], KeyUpdate",
            b"K\n": b">>> TLS 1.3, Handshake [length 0005], KeyUpdate",
            b"again\n": b"<<< TLS 1.3, Handshake [length 0005], KeyUpdate",
            b"still here\n": b"\nstill here\n",
        }.items():
            os.write(client.stdin.fileno(), word)
            text = b""
            while answer not in text:
                chunk = os.read(client.stdout.fileno(), 65536)
                assert chunk, f"it ended after {text!r}"
                text += chunk

    return {"the key update that was asked for": "came", "echo": "goes on"}


def certificate_of(process: Process) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port_of(process.addresses[0])), TIMEOUT) as sock,
        context.wrap_socket(sock) as over_tls,
    ):
        shown = over_tls.getpeercert(binary_form=True)
        assert shown is not None
        over_tls.sendall(b"x")
        assert over_tls.recv(1) == b"x"
        return shown


@injects(12, "SIGHUP with a new certificate; with an invalid key; without a key; with a valid one again")
def certificate_rotated(scene: Scene) -> Observed:
    files = files_in(scene.directory)
    process = _serve(scene, files)
    first = certificate_of(process)
    files_in(scene.directory)
    process.signal(signal.SIGHUP)
    process.read_errors(until="certificates reloaded\n")
    second = certificate_of(process)
    assert second != first

    lines = []
    spoilers: tuple[Callable[[Path], object], ...] = (lambda path: path.write_text("broken"), Path.unlink)
    for spoil in spoilers:
        spoil(files.key)
        process.signal(signal.SIGHUP)
        text = process.read_errors(until="stays what it was\n")
        lines.append(next(line for line in text.splitlines() if line.endswith("stays what it was")))
        assert str(files.key) in lines[-1]
        assert certificate_of(process) == second

    files_in(scene.directory)
    process.signal(signal.SIGHUP)
    process.read_errors(until="certificates reloaded\n")
    assert certificate_of(process) not in (first, second)
    said = [line.replace(f"{scene.directory}/", "") for line in lines]
    return {"next handshake": "the new one", "broken": said[0], "gone": said[1], "then, still": "the one before"}


@injects(13, "100 SIGHUP in quick succession to a server with a certificate; then SIGTERM")
def hangups(scene: Scene) -> Observed:
    process = _serve(scene, files_in(scene.directory))
    shown = certificate_of(process)
    for _ in range(100):
        process.signal(signal.SIGHUP)
    assert certificate_of(process) == shown
    start = time.monotonic()
    process.signal()
    assert process.wait() == 0
    took = time.monotonic() - start
    assert took < time_limit(0.5)
    return {"meanwhile": "handshakes and echoes", "SIGTERM": f"exit 0 after {took:.2f} s"}
