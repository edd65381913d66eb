"""``anyecho send`` as a real process, with correct and with faulty servers."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import struct
import subprocess
from ast import literal_eval
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import IO, Any, TypeAlias

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyecho.backends import run as run_on
from anyecho.cli.main import main
from anyecho.client.client import Client, connect
from anyecho.client.source import Source
from anyecho.units import format_duration
from tests.support.machine import needs_ipv6, needs_program
from tests.support.peers import receive_all
from tests.support.process import (
    TIMEOUT,
    Processes,
    accepts,
    descriptors,
    echo,
    peer,
    port_of,
    resident,
    terminal,
    unwritable,
    wait_until,
)

#: What a server in a thread does with the single connection that it accepts.
Script: TypeAlias = Callable[[socket.socket], None]
#: Starts a server in a thread; returns its address.
Serve: TypeAlias = Callable[[Script], str]
#: Runs ``anyecho send`` in this process, which is faster: exit status, standard output, standard error.
Send: TypeAlias = Callable[..., tuple[int, bytes, bytes]]

#: More than the kernels' buffers hold, and not a multiple of a chunk size.
LARGE = os.urandom((8 << 20) + 12345)


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as opened:
        yield lambda script: opened.enter_context(peer(script))


@pytest.fixture(scope="module")
def _first_loop() -> None:
    """The first event loop of libuv opens two descriptors, which the process keeps."""
    run_on(checkpoint, backend="uvloop")


@pytest.fixture
def send(capfdbinary: pytest.CaptureFixture[bytes], _first_loop: None) -> Send:
    def run(*arguments: str) -> tuple[int, bytes, bytes]:
        before = descriptors()
        status = main(["send", *arguments])
        wait_until(lambda: descriptors() <= before)  # the thread of the server closes its socket a little later
        return status, *capfdbinary.readouterr()

    return run


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a listener that never accepts: the kernel takes the data, and no echo returns."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def absent() -> Iterator[str]:
    """The address of a listener whose accept backlog is full: connecting gets no answer."""
    with ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            sock = opened.enter_context(socket.socket())
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.connect(listener.getsockname())
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"


def only(count: int) -> Script:
    """Echo `count` bytes, then half-close."""

    def script(sock: socket.socket) -> None:
        sock.sendall(sock.recv(count, socket.MSG_WAITALL))
        sock.shutdown(socket.SHUT_WR)
        receive_all(sock)

    return script


def wrong_at(offset: int) -> Script:
    """Echo, with one bit of the byte at `offset` flipped."""

    def script(sock: socket.socket) -> None:
        at = 0
        while chunk := bytearray(sock.recv(65536)):
            if at <= offset < at + len(chunk):
                chunk[offset - at] ^= 1
            sock.sendall(chunk)
            at += len(chunk)

    return script


def test_every_message_comes_back_on_standard_output(processes: Processes, backend: str, serve: Serve) -> None:
    ended = processes.run("send", serve(echo), "--backend", backend, "This is the message. ", "In parts.")

    assert ended == (0, b"This is the message. In parts.", "")


def test_standard_input_of_any_size_is_sent(processes: Processes, backend: str, serve: Serve) -> None:
    ended = processes.run("send", serve(echo), "--backend", backend, stdin=LARGE)

    assert ended == (0, LARGE, "")


def test_repeat_sends_a_file_again(send: Send, backend: str, serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "payload"
    file.write_bytes(LARGE)
    ended = send(serve(echo), "--backend", backend, "--file", str(file), "--repeat", "2")

    assert ended == (0, LARGE * 2, b"")


def test_repeat_sends_the_messages_again(send: Send, serve: Serve) -> None:
    assert send(serve(echo), "--repeat", "3", "a", "b") == (0, b"ababab", b"")


def test_an_empty_message_is_exit_0(send: Send, serve: Serve) -> None:
    assert send(serve(echo), "") == (0, b"", b"")


def test_empty_standard_input_is_exit_0(processes: Processes, backend: str, serve: Serve) -> None:
    assert processes.run("send", serve(echo), "--backend", backend) == (0, b"", "")


def test_a_message_can_contain_undecodable_bytes(send: Send, serve: Serve) -> None:
    message = b"\xff\xfe"

    assert send(serve(echo), os.fsdecode(message)) == (0, message, b"")


def test_each_message_is_one_write_before_the_half_close(processes: Processes, serve: Serve) -> None:
    told = (
        "\nimport os, socket"
        "\nsend, shutdown = socket.socket.send, socket.socket.shutdown"
        "\ndef log(what): os.write(2, what + b'\\n')"
        "\nsocket.socket.send = lambda self, data: (log(b'send ' + data), send(self, data))[1]"
        "\nsocket.socket.shutdown = lambda self, how: (log(b'shutdown %d' % how), shutdown(self, how))[1]\n"
    )
    status, output, errors = processes.run("send", serve(echo), "one", "two", "one", before=told)

    # An event loop may wake itself with a zero byte on a socket.
    calls = [line for line in errors.splitlines() if not line.endswith("\0")]
    assert calls == ["send one", "send two", "send one", f"shutdown {socket.SHUT_WR}"]
    assert (status, output) == (0, b"onetwoone")


def test_messages_leave_standard_input_unread(processes: Processes, serve: Serve) -> None:
    process = processes.start("send", serve(echo), "hello", stdin=subprocess.PIPE)

    assert process.wait() == 0
    assert process.read_bytes(5) == b"hello"


def test_the_echo_is_written_as_it_returns(processes: Processes, backend: str, serve: Serve) -> None:
    process = processes.start("send", serve(echo), "--backend", backend, stdin=subprocess.PIPE)
    stdin = process.popen.stdin
    assert stdin is not None
    for line in (b"one\n", b"two\n"):
        os.write(stdin.fileno(), line)
        assert process.read_bytes(4) == line
    stdin.close()

    assert process.wait() == 0


def test_a_stream_takes_constant_memory(processes: Processes, serve: Serve) -> None:
    process = processes.start("send", serve(echo), stdin=subprocess.PIPE)
    stdin, stdout = process.popen.stdin, process.popen.stdout
    assert stdin is not None
    assert stdout is not None

    def pass_through(pipe: IO[bytes], mebibytes: int) -> None:
        filling = Thread(target=lambda: [pipe.write(bytes(1 << 20)) for _ in range(mebibytes)])
        filling.start()
        left = mebibytes << 20
        while left:
            left -= len(os.read(stdout.fileno(), min(left, 1 << 18)))
        filling.join()

    pass_through(stdin, 16)
    peak = resident(process.pid, peak=True)
    pass_through(stdin, 64)
    # At most 8 MiB of outstanding bytes are kept for comparison.
    assert resident(process.pid, peak=True) - peak < 16 << 20
    stdin.close()
    assert process.wait() == 0


@pytest.mark.fault(row=10, injected="a client sends 100 MiB over TCP or a Unix socket")
@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "engine"), [("tcp://127.0.0.1:0", "tasks"), ("unix:{path}/echo", "auto")])
@pytest.mark.by_turns("scheme", "engine")
def test_a_hundred_mebibytes_are_echoed_equal_in_constant_memory(
    scheme: str, engine: str, backend: str, processes: Processes, short_path: Path
) -> None:
    bind = scheme.format(path=short_path)
    server = processes.serve("-b", bind, "--backend", backend, "--engine", engine)
    payload = random.Random(100).randbytes(100 << 20)

    def sent(count: int) -> int:
        """Send `count` bytes, receive the echo, and return the peak memory of the client."""
        client = processes.start("send", server.addresses[0], "--backend", backend, stdin=subprocess.PIPE)
        stdin, stdout = client.popen.stdin, client.popen.stdout
        assert stdin is not None
        assert stdout is not None
        writing = Thread(target=lambda: stdin.write(payload[:count]))
        writing.start()
        assert stdout.read(count) == payload[:count]
        peak = resident(client.pid, peak=True)
        writing.join()
        stdin.close()
        assert client.wait() == 0
        return peak

    little = sent(1 << 20)
    before = resident(server.pid, peak=True)
    assert sent(100 << 20) - little < 16 << 20
    assert resident(server.pid, peak=True) - before < 16 << 20


@pytest.mark.parametrize("scheme", ["unix:{path}/echo", "unix:@{path}"])
def test_send_connects_to_a_unix_socket(processes: Processes, send: Send, short_path: Path, scheme: str) -> None:
    address = scheme.format(path=short_path)
    processes.serve("-b", address)

    assert send(address, "hello") == (0, b"hello", b"")


# Not ncat: its --exec loses data in transit when a client half-closes.
@needs_program("socat")
def test_send_works_with_servers_of_other_programs(processes: Processes, short_path: Path) -> None:
    path = short_path / "echo"
    with subprocess.Popen(["socat", "-t20", f"UNIX-LISTEN:{path},fork", "EXEC:/bin/cat"]) as socat:
        try:
            wait_until(lambda: accepts(f"unix:{path}"))
            assert processes.run("send", f"unix:{path}", stdin=LARGE) == (0, LARGE, "")
        finally:
            socat.terminate()


@needs_ipv6
def test_a_family_can_be_chosen(processes: Processes, send: Send) -> None:
    port = port_of(processes.serve("-b", "tcp://[::1]:0").addresses[0])

    assert send(f"localhost:{port}", "-6", "hello") == (0, b"hello", b"")
    assert send(f"localhost:{port}", "-4", "hello")[0] == 3


def test_the_log_is_the_conversation_of_the_original_example(send: Send, backend: str, serve: Serve) -> None:
    address = f"localhost:{port_of(serve(echo))}"
    messages = ["This is the message. ", "It will be sent ", "in parts."]
    status, output, errors = send(address, "--backend", backend, "--log-level", "debug", *messages)

    lines = errors.decode().splitlines()
    prefix = "echo_client: received "
    received = [literal_eval(line.removeprefix(prefix)) for line in lines if line.startswith(prefix)]
    assert [line for line in lines if not line.startswith(prefix)] == [
        f"echo_client: connecting to localhost port {port_of(address)}",
        "echo_client: sending b'This is the message. '",
        "echo_client: sending b'It will be sent '",
        "echo_client: sending b'in parts.'",
        "echo_client: waiting for response",
        "echo_client: closing",
    ]
    assert b"".join(received) == output == "".join(messages).encode()
    assert status == 0


def test_the_log_escapes_bytes_and_shortens_long_chunks(send: Send, serve: Serve) -> None:
    _, _, errors = send(serve(echo), "--log-level", "debug", "\x1b[31m\n" + "x" * 500)

    shown = r"b'\x1b[31m\n" + "x" * 58 + "'... (506 bytes)"
    assert f"echo_client: sending {shown}\n" in errors.decode()
    assert f"echo_client: received {shown}\n" in errors.decode()


def test_a_wrong_byte_is_exit_1_and_its_offset(send: Send, serve: Serve) -> None:
    ended = send(serve(wrong_at(7)), "hello", "world")

    assert ended == (1, b"hellowo", b"anyecho: byte 7 is wrong: sent 0x72, got 0x73\n")


def test_the_first_wrong_byte_of_many_is_named(processes: Processes, backend: str, serve: Serve) -> None:
    offset = 5_000_000
    ended = processes.run("send", serve(wrong_at(offset)), "--backend", backend, stdin=LARGE)

    sent = LARGE[offset]
    line = f"anyecho: byte {offset} is wrong: sent 0x{sent:02x}, got 0x{sent ^ 1:02x}\n"
    assert ended == (1, LARGE[:offset], line)


def test_an_echo_cut_short_is_exit_1_and_the_offset(send: Send, backend: str, serve: Serve) -> None:
    ended = send(serve(only(4)), "--backend", backend, "hello", "world")

    line = b"anyecho: the server closed the connection: byte 4 is missing, 10 were sent\n"
    assert ended == (1, b"hell", line)


def test_surplus_bytes_are_exit_1_and_the_offset(send: Send, serve: Serve) -> None:
    def script(sock: socket.socket) -> None:
        sock.sendall(receive_all(sock) + b"!")

    assert send(serve(script), "hello") == (1, b"hello", b"anyecho: byte 5 was never sent: got 0x21\n")


def test_a_reset_is_exit_1_and_the_offset(send: Send, serve: Serve) -> None:
    def script(sock: socket.socket) -> None:
        sock.recv(5)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    status, output, errors = send(serve(script), "hello")

    line = rb"anyecho: the connection broke \(.*reset.*\): byte 0 is missing, 5 were sent\n"
    assert re.fullmatch(line, errors)
    assert (status, output) == (1, b"")


def test_an_echo_that_stalls_is_exit_1_after_the_timeout(send: Send, silent: str) -> None:
    began = monotonic()
    ended = send(silent, "--timeout", "300ms", "hello")

    line = f"anyecho: no byte has moved for {format_duration(0.3)}: byte 0 is missing, 5 were sent\n"
    assert ended == (1, b"", line.encode())
    assert monotonic() - began >= 0.3


def test_the_deadline_ends_an_active_exchange(processes: Processes, serve: Serve) -> None:
    process = processes.start("send", serve(echo), "--deadline", "2s", stdin=subprocess.PIPE)
    assert process.popen.stdin is not None
    os.write(process.popen.stdin.fileno(), b"hello")

    assert process.read_bytes(5) == b"hello"
    assert process.wait() == 1
    line = "the deadline is over: all 5 bytes are back, but the input has not ended"
    assert process.errors() == f"anyecho: {line}\n"


def test_no_answer_within_the_timeout_is_exit_3(send: Send, backend: str, absent: str) -> None:
    began = monotonic()
    ended = send(absent, "--backend", backend, "--timeout", "300ms", "hello")

    line = f"anyecho: cannot connect to {absent}: no answer within {format_duration(0.3)}\n"
    assert ended == (3, b"", line.encode())
    assert monotonic() - began >= 0.3


def test_an_attempt_to_connect_can_be_interrupted(processes: Processes, absent: str) -> None:
    process = processes.start("send", absent, "--log-level", "debug", "hello")
    process.read_errors(until="connecting to")
    process.signal(signal.SIGINT)

    assert process.wait(3 * 0.5) == 130
    assert process.errors() == ""


def test_the_end_of_the_server_ends_the_wait_for_terminal_input(processes: Processes, backend: str) -> None:
    server = processes.serve("-b", "tcp://127.0.0.1:0")
    with terminal() as (keyboard, screen):
        process = processes.start("send", server.addresses[0], "--backend", backend, stdin=screen)
        os.write(keyboard, b"hello\n")
        assert process.read_bytes(6) == b"hello\n"
        server.signal(signal.SIGKILL)

        assert process.wait(3 * 0.5) == 1

    line = r"anyecho: .*: all 6 bytes are back, but the input has not ended\n"
    assert re.fullmatch(line, process.errors())


def test_ctrl_d_ends_terminal_input(processes: Processes, serve: Serve) -> None:
    with terminal() as (keyboard, screen):
        process = processes.start("send", serve(echo), stdin=screen)
        os.write(keyboard, b"hello\n\x04")

        assert process.wait() == 0
        assert process.read_bytes(6) == b"hello\n"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("full", "No space left on device"), ("gone", "Broken pipe"), ("closed", "Bad file descriptor")],
)
def test_an_echo_that_cannot_be_written_is_exit_1_and_one_line(
    processes: Processes, serve: Serve, kind: str, reason: str
) -> None:
    streams: dict[str, Any] = {"closed": [1]} if kind == "closed" else {"stdout": unwritable(kind)}
    status, _, errors = processes.run("send", serve(echo), "hello", **streams)
    if "stdout" in streams:
        os.close(streams["stdout"])

    assert errors == f"anyecho: cannot write the echo to standard output: {reason}\n"
    assert status == 1


@pytest.mark.parametrize("closed", [[2], [0, 2]])
def test_a_closed_standard_error_keeps_the_exit_status(
    processes: Processes, serve: Serve, closed: list[int]
) -> None:
    ended = processes.run("send", serve(wrong_at(3)), "hello", closed=closed)

    assert ended == (1, b"hel", "")


def test_standard_input_that_is_closed_is_exit_1_and_one_line(processes: Processes, serve: Serve) -> None:
    line = "anyecho: cannot read standard input: Bad file descriptor\n"

    assert processes.run("send", serve(echo), closed=[0]) == (1, b"", line)


def test_a_file_that_cannot_be_read_is_exit_1_and_one_line(send: Send, serve: Serve, tmp_path: Path) -> None:
    line = f"anyecho: cannot read {tmp_path}: Is a directory\n"

    assert send(serve(echo), "--file", str(tmp_path)) == (1, b"", line.encode())


def test_a_pipe_that_cannot_be_read_again_is_a_usage_error_before_anything_is_sent(processes: Processes) -> None:
    ended = processes.run("send", "127.0.0.1:1", "--repeat", "2", "--file", "/dev/stdin", stdin=b"once")

    line = "anyecho: --repeat needs a file that can be read again, and /dev/stdin cannot (Illegal seek)\n"
    assert ended == (2, b"", line)


def test_a_repeated_message_is_stored_once(processes: Processes, serve: Serve) -> None:
    process = processes.start("send", serve(echo), "hello", "--repeat", "100000000000", "--deadline", "300ms")
    process.popen.communicate(timeout=TIMEOUT)

    assert process.wait() == 1


def test_the_deadline_applies_to_empty_messages(send: Send, serve: Serve) -> None:
    status, _, errors = send(serve(echo), "", "--repeat", "100000000", "--deadline", "300ms")

    line = b"the deadline is over: all 0 bytes are back, but the input has not ended"
    assert (status, errors) == (1, b"anyecho: %b\n" % line)


def test_the_deadline_includes_connecting(processes: Processes) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent, ExitStack() as opened:
        for _ in range(8):  # until the accept backlog is full
            client = opened.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(silent.getsockname())
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        status, _, errors = processes.run("send", address, "hello", "--deadline", "300ms")

    assert (status, errors) == (3, f"anyecho: cannot connect to tcp://{address}: no answer within 300ms\n")


def test_the_time_to_connect_is_taken_from_the_deadline(
    send: Send, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines: list[float] = []
    client_send = Client.send

    async def connect_slowly(*args: Any, **options: Any) -> Client:
        await anyio.sleep(0.3)
        return await connect(*args, **options)

    def record(client: Client, source: Source, *, deadline: float) -> Any:
        deadlines.append(deadline)
        return client_send(client, source, deadline=deadline)

    monkeypatch.setattr("anyecho.cli.send.connect", connect_slowly)
    monkeypatch.setattr(Client, "send", record)

    assert send(serve(echo), "hello", "--deadline", "100s") == (0, b"hello", b"")
    assert 0 < deadlines[0] < 99.8


def test_a_fifo_without_a_writer_is_waited_for_until_the_deadline(processes: Processes, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    command = ("send", "localhost:1", "--file", str(tmp_path / "fifo"), "--deadline", "300ms")

    assert processes.run(*command) == (1, b"", f"anyecho: cannot read {tmp_path}/fifo: no process writes to it\n")


def test_a_non_blocking_standard_output_gets_the_whole_echo(processes: Processes, serve: Serve) -> None:
    payload = os.urandom(1 << 20)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with open(read_end, "rb") as reader:
        process = processes.start("send", serve(echo), stdin=subprocess.PIPE, stdout=write_end)
        os.close(write_end)
        assert process.popen.stdin is not None
        with process.popen.stdin as stdin:
            stdin.write(payload)
        assert reader.read() == payload

    assert process.wait() == 0


@pytest.mark.parametrize("name", ["asyncio", "uvloop", "trio"])
def test_an_abandoned_read_of_standard_input_does_not_delay_the_exit(
    name: str, processes: Processes, serve: Serve
) -> None:
    """Standard output is closed, so the echo cannot be written; standard input stays open without data."""
    process = processes.start("send", serve(echo), "--backend", name, stdin=subprocess.PIPE, closed=[1])
    assert process.popen.stdin is not None
    process.popen.stdin.write(b"hello")
    process.popen.stdin.flush()

    assert process.wait() == 1
