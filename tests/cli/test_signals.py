"""Signals at real processes: the first drains, the second closes at once, the third ends a stuck process."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from time import monotonic

import anyio
import pytest

from anyecho.cli.signals import caught_signals
from tests.support.peers import dial, exchange, receive_all, unread
from tests.support.process import TIMEOUT, Processes, accepts, descriptors, echo, peer, terminal, wait_until
from tests.support.stuck import DEAD_NAME_SERVER, REPORT_SIGNALS, STUCK, STUCK_SEND

TCP = "tcp://127.0.0.1:0"
#: Seconds that an exit may take on a busy machine besides the times of its options; 0.5 s on an idle machine.
END = 10.0
#: Longer than any test waits.
LONG = "1h"


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT], ids=lambda signum: signum.name)
def signum(request: pytest.FixtureRequest) -> signal.Signals:
    number: signal.Signals = request.param
    return number


@pytest.fixture
def server() -> Iterator[str]:
    """The address of an echo server in a thread, for one client."""
    with peer(echo) as address:
        yield address


def fill_buffers(sock: socket.socket) -> None:
    """Send without reading until the server has pending echo, for which it lingers."""
    sock.settimeout(0.2)
    with suppress(TimeoutError):
        while True:
            sock.send(bytes(65536))


@pytest.mark.fault(row=13, injected="SIGTERM or SIGINT to an idle server")
def test_the_first_signal_ends_an_idle_server_at_once(
    processes: Processes, backend: str, signum: signal.Signals
) -> None:
    process = processes.serve("-b", TCP, "--backend", backend)
    process.signal(signum)

    assert process.wait(END) == 0
    assert process.errors() == ""


@pytest.mark.fault(row=13, injected="SIGTERM to a busy server with 0.3 s of grace period, whose peer keeps sending")
def test_the_first_signal_drains_for_the_grace_period_then_lingers(processes: Processes, backend: str) -> None:
    grace, linger = 0.3, 0.2
    times = ("--graceful-timeout", f"{grace}s", "--linger", f"{linger}s")
    process = processes.serve("-b", TCP, "--backend", backend, *times)
    with dial(process.addresses[0]) as sock, dial(process.addresses[0]) as unread:
        assert exchange(sock, b"before") == b"before"
        fill_buffers(unread)
        began = monotonic()
        process.signal(signal.SIGTERM)
        wait_until(lambda: not accepts(process.addresses[0]))
        assert exchange(sock, b"after") == b"after"
        # The server closes this connection, and lingers for the pending echo of the other.
        assert receive_all(sock) == b""
        assert monotonic() - began >= grace
        assert process.wait(grace + linger + END) == 0
        assert grace + linger <= monotonic() - began < grace + linger + END


def test_a_drain_ends_with_the_last_connection(processes: Processes, backend: str) -> None:
    process = processes.serve("-b", TCP, "--backend", backend, "--graceful-timeout", LONG)
    with dial(process.addresses[0]) as sock:
        assert exchange(sock, b"before") == b"before"
        process.signal(signal.SIGINT)
        wait_until(lambda: not accepts(process.addresses[0]))
        assert exchange(sock, b"after") == b"after"
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b""

    assert process.wait(END) == 0


@pytest.mark.by_turns("signum")
def test_bytes_sent_before_and_after_the_first_signal_are_echoed(
    processes: Processes, backend: str, signum: signal.Signals
) -> None:
    process = processes.serve("-b", TCP, "--backend", backend)
    first, second = os.urandom(1 << 19), os.urandom(1 << 19)
    echo: list[bytes] = []
    with dial(process.addresses[0]) as sock:
        reading = Thread(target=lambda: echo.append(receive_all(sock)))
        reading.start()
        sock.sendall(first)
        process.signal(signum)
        wait_until(lambda: not accepts(process.addresses[0]))
        sock.sendall(second)
        sock.shutdown(socket.SHUT_WR)
        reading.join(TIMEOUT)

    assert echo == [first + second]
    assert process.wait(END) == 0


def test_a_peer_that_does_not_read_extends_no_drain(processes: Processes) -> None:
    times = ("--graceful-timeout", "200ms", "--linger", "200ms")
    process = processes.serve("-b", TCP, *times)
    with dial(process.addresses[0]) as sock:

        def flood() -> None:
            with suppress(ConnectionError):
                sock.sendall(bytes(1 << 27))

        flooding = Thread(target=flood)
        flooding.start()
        process.signal()

        assert process.wait(0.4 + END) == 0
        flooding.join(TIMEOUT)


@pytest.mark.fault(row=13, injected="a second SIGTERM or SIGINT during a drain with an hour of grace period")
def test_the_second_signal_closes_at_once(processes: Processes, backend: str, signum: signal.Signals) -> None:
    process = processes.serve("-b", TCP, "--backend", backend, "--graceful-timeout", LONG, "--linger", LONG)
    with dial(process.addresses[0]) as sock:
        assert exchange(sock, b"hello") == b"hello"
        process.signal(signum)
        wait_until(lambda: not accepts(process.addresses[0]))
        process.signal(signum)

        assert process.wait(END) == 0
        assert sock.recv(1) == b""

    assert process.errors() == ""


@pytest.mark.fault(row=13, injected="300 SIGTERM and SIGINT in quick succession to a busy server")
def test_a_storm_of_signals_ends_a_busy_server_without_a_traceback(processes: Processes, backend: str) -> None:
    process = processes.serve("-b", TCP, "--backend", backend, "--graceful-timeout", LONG, "--linger", LONG)
    with dial(process.addresses[0]) as sock:
        assert exchange(sock, b"hello") == b"hello"
        for number in range(300):
            # The PID is not reused before the process has been waited for.
            os.kill(process.pid, (signal.SIGTERM, signal.SIGINT)[number % 2])
        # The third one restores the default action, for a stuck event loop.
        assert process.wait(END) in (0, -signal.SIGTERM, -signal.SIGINT)
        assert sock.recv(1) == b""

    assert process.errors() == ""


def test_the_second_signal_ends_a_linger_too(processes: Processes, backend: str) -> None:
    process = processes.serve("-b", TCP, "--backend", backend, "--graceful-timeout", "0", "--linger", LONG)
    with dial(process.addresses[0]) as unread:
        fill_buffers(unread)
        process.signal(signal.SIGINT)
        wait_until(lambda: not accepts(process.addresses[0]))
        process.signal(signal.SIGTERM)

        assert process.wait(END) == 0


def test_the_third_signal_ends_a_loop_that_is_stuck(
    processes: Processes, backend: str, signum: signal.Signals
) -> None:
    process = processes.serve("-b", TCP, "--backend", backend, before=STUCK + REPORT_SIGNALS)
    with dial(process.addresses[0]):
        process.read_errors(until="stuck\n")
        for _ in range(2):
            process.signal(signum)
            process.read_errors(until="noted\n")
        assert process.popen.poll() is None
        process.signal(signum)

        assert process.wait(END) == -signum


@pytest.mark.fault(row=26, injected="a name server never answers, and the server gets SIGTERM")
def test_a_signal_before_the_server_listens_ends_it(processes: Processes, backend: str, short_path: Path) -> None:
    """The thread that looks up the name cannot be ended."""
    process = processes.start(
        *("serve", "-b", f"unix:{short_path}/echo", "-b", "tcp://slow:0", "--backend", backend),
        before=DEAD_NAME_SERVER,
    )
    assert process.read_errors(until="\n") == "resolving\n"
    process.signal(signal.SIGTERM)

    assert process.wait(END) == 0
    assert process.errors() == ""
    assert os.listdir(short_path) == []


@pytest.mark.fault(row=26, injected="a name server never answers a client with a timeout of 0.2 s")
def test_a_client_whose_name_server_never_answers_exits_after_its_timeout(
    processes: Processes, backend: str
) -> None:
    arguments = ("send", "tcp://slow:7007", "--timeout", "200ms", "--backend", backend, "hello")
    line = "anyecho: cannot connect to tcp://slow:7007: no answer within 200ms\n"
    assert processes.run(*arguments, before=DEAD_NAME_SERVER) == (3, b"", f"resolving\n{line}")


def test_a_signal_before_the_loop_runs_is_not_lost(processes: Processes, backend: str) -> None:
    early = f"""
import os
import anyecho.cli.serving as serve
run = serve.run
def late(*args, **options):
    os.kill(os.getpid(), {int(signal.SIGINT)})
    return run(*args, **options)
serve.run = late
"""
    process = processes.start("serve", "-b", TCP, "--backend", backend, before=early)

    assert process.wait() == 0
    assert process.errors() == ""


def test_an_interrupted_send_has_written_the_received_echo(
    processes: Processes, backend: str, signum: signal.Signals, server: str
) -> None:
    process = processes.start("send", server, "--backend", backend, stdin=subprocess.PIPE)
    assert process.popen.stdin is not None
    os.write(process.popen.stdin.fileno(), b"hello")
    assert process.read_bytes(5) == b"hello"
    process.signal(signum)

    # 130 or 143, as in a shell.
    assert process.wait(END) == 128 + signum
    assert process.errors() == ""


def test_ctrl_c_at_a_terminal_ends_send(processes: Processes, backend: str, server: str) -> None:
    take_terminal = "import fcntl, os, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    with terminal() as (keyboard, screen):
        process = processes.start("send", server, "--backend", backend, before=take_terminal, stdin=screen)
        os.write(keyboard, b"hello\n")
        assert process.read_bytes(6) == b"hello\n"
        os.write(keyboard, b"\x03")

        assert process.wait(END) == 128 + signal.SIGINT
        assert process.errors() == ""


def test_send_can_be_interrupted_while_its_output_is_not_read(
    processes: Processes, backend: str, server: str, tmp_path: Path
) -> None:
    file = tmp_path / "payload"
    file.write_bytes(bytes(1 << 22))
    process = processes.start("send", server, "--backend", backend, "--file", str(file))
    stdout = process.popen.stdout
    assert stdout is not None
    capacity = fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, 4096)
    wait_until(lambda: unread(stdout.fileno()) == capacity)
    process.signal(signal.SIGINT)

    assert process.wait(END) == 128 + signal.SIGINT
    assert process.errors() == ""


def test_a_second_signal_ends_a_send_that_is_stuck(
    processes: Processes, signum: signal.Signals, server: str
) -> None:
    process = processes.start("send", server, "hello", before=REPORT_SIGNALS + STUCK_SEND)
    process.read_errors(until="stuck\n")
    process.signal(signum)
    process.read_errors(until="noted\n")
    process.signal(signum)

    assert process.wait(END) == -signum


def test_handlers_mask_descriptors_and_wakeup_are_restored() -> None:
    def state() -> list[object]:
        handlers = [signal.getsignal(each) for each in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)]
        signal.set_wakeup_fd(wakeup := signal.set_wakeup_fd(-1))
        return [signal.pthread_sigmask(signal.SIG_BLOCK, ()), descriptors(), *handlers, wakeup]

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    before = state()
    with caught_signals(handled=2, hangup=True) as signals:
        inside = state()
        os.kill(os.getpid(), signal.SIGTERM)
        assert anyio.run(signals.next) == signal.SIGTERM
    after = state()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    assert after == before
    assert [at for at in (0, 2, 4) if inside[at] == before[at]] == []  # the mask, SIGHUP, SIGTERM


def test_signals_pending_together_are_all_counted(signum: signal.Signals) -> None:
    """The last handled signal and a surplus one: Python runs both handlers in one go, the smaller number first."""
    code = f"""
import os, signal
from anyecho.cli.signals import caught_signals
both = [signal.SIGINT, signal.SIGTERM]
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if the suite runs as a script's `cmd &`
with caught_signals(handled=2):
    os.kill(os.getpid(), {int(signum)})
    signal.pthread_sigmask(signal.SIG_BLOCK, both)
    for each in both:
        os.kill(os.getpid(), each)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
    print("it lives")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGTERM, "", "")
