"""``serve`` and ``send`` over TLS, as real processes, with clients of other programs."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from anyecho.threaded import threaded_server
from tests.cli.conftest import Run
from tests.support.certificates import Files, files_in
from tests.support.machine import needs, program
from tests.support.peers import unread
from tests.support.process import TIMEOUT, Process, Processes, port_of, wait_until
from tests.support.tls import TLS, options

LARGE = os.urandom(2 << 20)


def serve(processes: Processes, files: Files, *others: str) -> Process:
    certificate = ("--ssl-certfile", str(files.cert), "--ssl-keyfile", str(files.key))
    return processes.serve("-b", TLS, *certificate, *others)


def call(command: list[str], payload: bytes, process: Process, files: Files) -> bytes:
    """Return the output of the client `command` for `payload`."""
    program(command[0])
    place = {"port": port_of(process.addresses[0]), "ca": files.cacert, "client": files.client}
    words = [word.format(**place) for word in command]
    return subprocess.run(words, input=payload, stdout=subprocess.PIPE, timeout=TIMEOUT, check=True).stdout


#: Each verifies the server. socat half-closes; ncat does not; s_client exits at the end of its input.
CLIENTS = {
    "socat": ["socat", "-t20", "-", "OPENSSL:localhost:{port},pf=ip4,cafile={ca}"],
    "ncat": ["ncat", "--ssl-verify", "--ssl-trustfile", "{ca}", "localhost", "{port}"],
}


@pytest.mark.parametrize("client", list(CLIENTS))
def test_clients_of_other_programs_get_their_echo(
    client: str, processes: Processes, files: Files, engine: str
) -> None:
    process = serve(processes, files, "--engine", engine)
    assert call(CLIENTS[client], LARGE, process, files) == LARGE


S_CLIENT = ["openssl", "s_client", "-connect", "127.0.0.1:{port}", "-CAfile", "{ca}", "-verify_return_error"]


@contextmanager
def s_client(process: Process, files: Files, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    place = {"port": port_of(process.addresses[0]), "ca": files.cacert, "client": files.client}
    words = [word.format(**place) for word in [*S_CLIENT, *options]]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as popen:
        try:
            yield popen
        finally:
            popen.kill()


def read_until(popen: subprocess.Popen[bytes], *ends: bytes) -> None:
    """Read the output until it contains all of `ends`, in this order."""
    assert popen.stdout is not None
    text = b""
    for end in ends:
        while end not in text:
            chunk = os.read(popen.stdout.fileno(), 65536)
            assert chunk, f"it ended after {text!r}"
            text += chunk
        text = text.partition(end)[2]


def write(popen: subprocess.Popen[bytes], text: bytes) -> None:
    assert popen.stdin is not None
    popen.stdin.write(text)
    popen.stdin.flush()


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssls_client_gets_its_echo(version: str, processes: Processes, files: Files, engine: str) -> None:
    process = serve(processes, files, "--engine", engine, "--access-log")
    with s_client(process, files, version, "-quiet", "-no_ign_eof") as client:
        write(client, b"hello\n")
        read_until(client, b"hello\n")
        assert client.stdin is not None
        client.stdin.close()  # then it sends close_notify
        assert "reason=eof bytes_received=6 bytes_sent=6" in process.read_errors(until="\n")


@pytest.mark.fault(row=11, injected="openssl's client sends a KeyUpdate, then requests one too, between messages")
def test_a_key_update_of_openssls_client_is_answered(processes: Processes, files: Files, engine: str) -> None:
    process = serve(processes, files, "--engine", engine)
    with s_client(process, files, "-tls1_3", "-msg") as client:
        write(client, b"hello\n")
        read_until(client, b"\nhello\n")
        write(client, b"k\n")
        read_until(client, b">>> TLS 1.3, Handshake [length 0005], KeyUpdate")
        write(client, b"K\n")
        read_until(client, b">>> TLS 1.3, Handshake [length 0005], KeyUpdate")
        # This KeyUpdate must be answered before further data (RFC 8446, section 4.6.3).
        write(client, b"still here\n")
        read_until(client, b"<<< TLS 1.3, Handshake [length 0005], KeyUpdate", b"\nstill here\n")


def test_keys_are_updated_while_data_flows(processes: Processes, files: Files, engine: str) -> None:
    """Each "K" requests a KeyUpdate of the server too, while an echo is outstanding."""
    process = serve(processes, files, "--engine", engine)
    with (
        s_client(process, files, "-tls1_3", "-msg", "-quiet", "-no_ign_eof") as client,
        ThreadPoolExecutor() as threads,
    ):
        assert client.stdout is not None
        for command in (b"k\n", b"K\n") * 5:
            threads.submit(_write_apart, client, b"~" * 65536, command)
            text = b""
            while text.count(b"~") < 65536 or b">>> TLS 1.3, Handshake [length 0005], KeyUpdate" not in text:
                text += os.read(client.stdout.fileno(), 65536)
            assert text.count(b"~") == 65536


def _write_apart(popen: subprocess.Popen[bytes], *texts: bytes) -> None:
    """Write each text after the previous one is read: s_client looks for a command at the start of a read."""
    stdin = popen.stdin
    assert stdin is not None
    for text in texts:
        write(popen, text)
        wait_until(lambda: unread(stdin) == 0)


def test_renegotiation_is_refused(processes: Processes, files: Files, engine: str) -> None:
    process = serve(processes, files, "--engine", engine)
    with s_client(process, files, "-tls1_2", "-msg") as client:
        write(client, b"hello\n")
        read_until(client, b"\nhello\n")
        write(client, b"R\n")
        read_until(client, b"ClientHello", b"<<< TLS 1.2, Alert [length 0002], warning no_renegotiation")


def test_a_refused_openssl_client_gets_an_alert_with_the_reason(processes: Processes, files: Files) -> None:
    mutual = ("--ssl-ca-certs", str(files.cacert), "--ssl-cert-reqs", "required")
    process = serve(processes, files, *mutual)
    with s_client(process, files, "-tls1_3", "-msg") as client:
        read_until(client, b"<<< TLS 1.3, Alert [length 0002], fatal certificate_required")
    with s_client(process, files, "-tls1_3", "-quiet", "-cert", str(files.client)) as client:
        write(client, b"hello\n")
        read_until(client, b"hello\n")


def test_a_client_that_is_killed_is_a_truncation(processes: Processes, files: Files, engine: str) -> None:
    process = serve(processes, files, "--engine", engine, "--access-log")
    with s_client(process, files, "-quiet") as client:
        write(client, b"hello\n")
        read_until(client, b"hello\n")
        client.kill()
        assert "reason=tls_truncated" in process.read_errors(until="\n")


def test_pythons_own_client_gets_its_echo(processes: Processes, files: Files, engine: str) -> None:
    process = serve(processes, files, "--engine", engine)
    context = ssl.create_default_context(cafile=files.cacert)
    with (
        socket.create_connection(("127.0.0.1", port_of(process.addresses[0]))) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as secured,
    ):
        for size in (1, 100, 40_000):
            payload = os.urandom(size)
            secured.sendall(payload)
            assert b"".join(_exactly(secured, size)) == payload
        # The server answers our close_notify with its own, or this would fail.
        secured.unwrap()


def _exactly(sock: ssl.SSLSocket, size: int) -> Iterator[bytes]:
    while size:
        chunk = sock.recv(size)
        assert chunk
        size -= len(chunk)
        yield chunk


def test_send_verifies_and_half_closes(processes: Processes, files: Files, backend: str) -> None:
    [address] = serve(processes, files, "--backend", backend).addresses
    status, echo, errors = processes.run(
        "send", address, "--cacert", str(files.cacert), "--backend", backend, stdin=LARGE
    )
    assert (status, echo, errors) == (0, LARGE, "")


def test_send_writes_the_proxy_header_before_the_handshake(processes: Processes, files: Files) -> None:
    process = serve(processes, files, "--proxy-protocol", "v2", "--proxy-trusted", "127.0.0.1", "--access-log")
    ca = ("--cacert", str(files.cacert))
    assert processes.run("send", process.addresses[0], *ca, "--proxy-header", "v2", "hello")[:2] == (0, b"hello")
    assert re.search(r"peer=127.* via=127.* reason=eof ", process.read_errors(until="\n"))


def test_an_inherited_socket_speaks_tls(processes: Processes, files: Files) -> None:
    certificate = ("--ssl-certfile", str(files.cert), "--ssl-keyfile", str(files.key))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        descriptor = listener.fileno()
        process = processes.serve("-b", f"tls+fd://{descriptor}", *certificate, pass_fds=[descriptor])
        assert process.addresses == [f"tls://127.0.0.1:{listener.getsockname()[1]}"]
        ca = ("--cacert", str(files.cacert))
        assert processes.run("send", process.addresses[0], *ca, "hello")[:2] == (0, b"hello")


def test_send_over_tls_on_a_unix_socket(processes: Processes, files: Files, short_path: Path) -> None:
    address = f"tls+unix:{short_path}/echo"
    certificate = ("--ssl-certfile", str(files.cert), "--ssl-keyfile", str(files.key))
    assert processes.serve("-b", address, *certificate).addresses == [address]
    assert processes.run("send", address, "--cacert", str(files.cacert), "hello")[:2] == (0, b"hello")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server in a thread, whose certificate is of the suite's CA."""
    with threaded_server(TLS, options=options(files_in(tmp_path_factory.mktemp("tls")))) as server:
        yield str(server.address)


@pytest.mark.parametrize("flags", [("-k",), ("--insecure",)])
def test_insecure_send_accepts_any_certificate(flags: tuple[str, ...], run: Run, address: str) -> None:
    assert run("send", address, *flags, "hello")[:2] == (0, b"hello")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ((), "certificate verify failed: .*certificate"),
        (("--cacert", "{ca}", "--sni", "example.org"), "certificate verify failed: Hostname mismatch"),
        (("--cacert", "/absent"), "cannot use /absent: No such file or directory"),
        (("--cert", "{ca}"), "--key is missing: .*ca.pem holds no private key in PEM format"),
    ],
)
def test_an_unusable_certificate_is_exit_3_and_one_line(
    flags: tuple[str, ...], why: str, run: Run, address: str, files: Files
) -> None:
    status, _, errors = run("send", address, *(flag.format(ca=files.cacert) for flag in flags), "hello")
    assert status == 3
    # The server in the thread logs the client's alert here, too.
    [line] = [each for each in errors.splitlines() if not each.startswith("main: handshake with ")]
    assert re.fullmatch(f"anyecho: .*{why}.*", line)


def test_serve_without_a_certificate_is_exit_2_and_one_line(run: Run) -> None:
    status, _, errors = run("serve", "-b", TLS)
    assert status == 2
    assert errors == f"anyecho: {TLS} needs a certificate: give --ssl-certfile or --ssl-self-signed\n"


def test_a_key_file_that_is_absent_is_named_and_not_the_certificate(run: Run, files: Files) -> None:
    given = ("--ssl-certfile", str(files.cert), "--ssl-keyfile", "/absent.pem")
    status, _, errors = run("serve", "-b", TLS, *given)
    assert (status, errors) == (3, "anyecho: cannot use /absent.pem: No such file or directory\n")


def test_a_generated_ca_is_named_and_works(processes: Processes) -> None:
    process = processes.serve("-b", TLS, "--ssl-self-signed")
    line = process.read_errors(until="\n")
    path = line.split()[-1]
    assert line == f"main: generated a certificate for this run: clients trust it with --cacert {path}\n"
    assert processes.run("send", process.addresses[0], "--cacert", path, "hello")[:2] == (0, b"hello")
    process.signal()
    assert process.wait() == 0
    assert not Path(path).exists()


@needs(hasattr(os, "memfd_create"), "files in memory")
def test_a_killed_server_leaves_no_file_of_a_generated_ca(processes: Processes, tmp_path: Path) -> None:
    process = processes.serve("-b", TLS, "--ssl-self-signed", env=os.environ | {"TMPDIR": str(tmp_path)})
    process.signal(signal.SIGKILL)
    process.wait()
    assert os.listdir(tmp_path) == []


def certificate_of(process: Process) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port_of(process.addresses[0]))) as sock,
        context.wrap_socket(sock) as secured,
    ):
        found = secured.getpeercert(binary_form=True)
        assert found is not None
        return found


@pytest.mark.fault(row=13, injected="100 SIGHUP in quick succession to a server with a certificate; then SIGTERM")
@pytest.mark.fault(
    row=12, injected="SIGHUP with a new certificate; with an invalid key; without a key; with a valid one again"
)
def test_sighup_reads_the_certificate_again_and_keeps_it_if_the_new_one_is_broken(
    processes: Processes, files: Files, backend: str
) -> None:
    process = serve(processes, files, "--backend", backend, "--log-level", "info")

    def reload() -> None:
        files_in(files.cert.parent)
        process.signal(signal.SIGHUP)
        process.read_errors(until="certificates reloaded\n")

    old = certificate_of(process)
    reload()
    new = certificate_of(process)
    assert new != old

    files.key.write_text("broken")
    for _ in range(3):  # not counted as a terminating signal
        process.signal(signal.SIGHUP)
        text = process.read_errors(until="stays what it was\n")
        assert re.search(r"^main: cannot use .*key\.pem.*; the certificate stays what it was$", text, re.M)
    files.key.unlink()
    process.signal(signal.SIGHUP)
    assert "key.pem: No such file" in process.read_errors(until="stays what it was\n")
    assert certificate_of(process) == new
    reload()
    newest = certificate_of(process)
    assert newest not in (old, new)

    for _ in range(100):
        process.signal(signal.SIGHUP)
    assert certificate_of(process) == newest
    process.signal()
    assert process.wait() == 0
