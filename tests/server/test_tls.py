"""The server over TLS: echoes, handshakes that fail, certificates, drain and abort."""

from __future__ import annotations

import gc
import os
import re
import socket
import ssl
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from anyio import (
    CancelScope,
    EndOfStream,
    create_task_group,
    fail_after,
    get_running_tasks,
    to_thread,
)
from anyio.lowlevel import checkpoint

from anyecho.address import Address, TCPAddress, UnixAddress
from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.errors import CertificateError, ConnectError, UsageError
from anyecho.net.poller import Fallback
from anyecho.net.tls import stream as tls_stream
from anyecho.net.tls.contexts import TLSClientOptions, TLSServerOptions
from anyecho.net.tls.records import Records
from anyecho.net.tls.stream import TLSStream
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.net.pairs import reset
from tests.support.certificates import VERSIONS, Files, client_over, files_in
from tests.support.conformance import MUCH, drain, fill
from tests.support.peers import SOON, dial, receive_all, until, until_closed
from tests.support.process import peer
from tests.support.tasks import wait_all_tasks_blocked
from tests.support.tls import TLS, options, shake_hands


@pytest.fixture(params=["tcp", "unix"])
def carrier(request: pytest.FixtureRequest, short_path: Path) -> Address:
    if request.param == "unix":
        return UnixAddress(path=str(short_path / "echo"), tls=True)

    return TCPAddress(host="127.0.0.1", port=0, tls=True)


async def test_payloads_are_echoed_over_tls(carrier: Address, files: Files, ca_options: ConnectOptions) -> None:
    async with open_server(carrier, options=options(files)) as server:
        assert server.addresses[0].tls
        async with await connect(server.addresses[0], options=ca_options) as client:
            for size in (1, 16384, 16385, 1 << 20):
                await client.exchange(os.urandom(size))

        await until_closed(server)
        assert server.stats.closed == {"eof": 1}
        assert server.stats.bytes_received == server.stats.bytes_sent == 1 + 16384 + 16385 + (1 << 20)


@pytest.mark.fault(row=8, injected="over TLS 1.2 and 1.3, a peer sends 2 MiB and close_notify, and keeps reading")
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
async def test_two_megabytes_come_back_whole_after_a_half_close(version: ssl.TLSVersion, files: Files) -> None:
    payload = os.urandom(2 << 20)
    async with open_server(TLS, options=options(files)) as server:
        stream = await shake_hands(server.addresses[0], version)

        async def send() -> None:
            await stream.send(payload)
            await stream.send_eof()

        async with stream, create_task_group() as tasks:
            tasks.start_soon(send)
            assert await drain(stream) == payload

        await until_closed(server)
        assert server.stats.closed == {"eof": 1}


async def test_many_peers_are_served_side_by_side(files: Files, ca_options: ConnectOptions) -> None:
    async with open_server(TLS, options=options(files)) as server:

        async def one(number: int) -> None:
            async with await connect(server.addresses[0], options=ca_options) as client:
                for turn in range(10):
                    await client.exchange(f"{number}:{turn}".encode() * 100)

        async with create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(one, number)

        await until_closed(server, 20)
        assert server.stats.closed == {"eof": 20}


async def test_data_in_the_segment_that_ends_the_handshake_is_echoed(files: Files) -> None:
    async with open_server(TLS, options=options(files)) as server:
        stream = client_over(dial(server.addresses[0]), Fallback(), ssl.TLSVersion.TLSv1_3)
        records = stream.records
        async with stream:
            assert not records.handshake()
            await stream._flush()
            while not records.handshake():
                while not stream._feed():
                    await stream._registration.readable()
            # Finished, a message and the end in one segment.
            records.send(b"at once")
            records.send_eof()
            await stream._flush()
            assert await drain(stream) == b"at once"

        await until_closed(server)
        assert server.stats.closed == {"eof": 1}


@pytest.mark.fault(row=8, injected="a TLS peer sends a FIN without close_notify")
async def test_a_fin_without_close_notify_is_counted_as_tls_truncated(carrier: Address, files: Files) -> None:
    async with open_server(carrier, options=options(files)) as server:
        async with await shake_hands(server.addresses[0]) as stream:
            await stream.send(b"whole")
            assert await stream.receive() == b"whole"
            stream._sock.shutdown(socket.SHUT_WR)
            await until_closed(server)
        assert server.stats.closed == {"tls_truncated": 1}


async def test_a_reset_before_the_last_echo_is_sent_is_not_counted_as_eof(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_server(TLS, options=options(files)) as server:
        stream = await shake_hands(server.addresses[0])
        await until(lambda: server.peers() != [])
        stream.records.send(b"the last")
        stream.records.send_eof()
        stream._sock.sendall(stream.records.take())

        def fail(*_: object) -> None:
            raise ConnectionResetError

        monkeypatch.setattr(socket.socket, "send", fail)
        await until_closed(server)
        stream._sock.close()

    assert server.stats.closed == {"reset": 1}


@pytest.mark.fault(row=11, injected="a bit of a TLS record is flipped")
async def test_a_tampered_record_ends_its_connection_with_an_alert(files: Files) -> None:
    async with open_server(TLS, options=options(files)) as server:
        neighbour = await shake_hands(server.addresses[0])
        async with neighbour, await shake_hands(server.addresses[0]) as stream:
            stream.records.send(b"bad")
            record = bytearray(stream.records.take())
            record[-1] ^= 1
            stream._sock.send(record)
            with pytest.raises(Exception) as caught, fail_after(SOON):
                await stream.receive()
            assert "alert bad record mac" in str(caught.value.__cause__)
            await until_closed(server)
            assert server.stats.closed == {"tls_error": 1}
            await neighbour.send(b"still here")
            assert await neighbour.receive() == b"still here"


def other_protocol(sock: socket.socket) -> None:
    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert receive_all(sock) == b""  # no alert: an HTTP client would not understand it


def nonsense(sock: socket.socket) -> None:
    sock.sendall(b"\x16\x03\x01\x00\x04nonsense")
    assert receive_all(sock)[0] == 21  # an alert


def old_version(sock: socket.socket) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="alert protocol version"):
        context.wrap_socket(sock)


def vanish(sock: socket.socket) -> None:
    sock.sendall(b"\x16\x03\x01\x02\x00\x01")
    reset(sock)


def leave(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_RDWR)


def dawdle(sock: socket.socket) -> None:
    assert receive_all(sock) == b""


@pytest.mark.fault(
    row=11, injected="HTTP, an invalid record, TLS 1.1, a RST, a FIN or silence instead of a handshake"
)
@pytest.mark.parametrize(
    ("behave", "logged"),
    [
        (other_protocol, "http request"),
        (nonsense, "unexpected message"),
        (old_version, "unsupported protocol"),
        *((silent, "") for silent in (vanish, leave, dawdle)),
    ],
)
async def test_a_failed_handshake_affects_no_other_connection(
    behave: Any, logged: str, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        open_server(TLS, options=options(files, handshake_timeout=0.3)) as server,
        await shake_hands(server.addresses[0]) as neighbour,
    ):
        with dial(server.addresses[0]) as sock:
            await to_thread.run_sync(behave, sock)
        await until_closed(server)
        assert server.stats.closed == {"handshake": 1}
        assert server.stats.active == 1
        await neighbour.send(b"still here")
        assert await neighbour.receive() == b"still here"

    why = [
        re.fullmatch(r"handshake with 127\.0\.0\.1_\d+ failed: (.*) \(1 times\)", line) for line in caplog.messages
    ]
    assert [each and each[1] for each in why] == [logged] * bool(logged)


async def test_other_tasks_run_between_handshakes(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty simultaneous handshakes use as much CPU as thousands of echoes."""
    turns = 0
    taken_at: list[int] = []
    handshake = Records.handshake

    def counted(records: Records) -> bool:
        if records.tls.server_side:
            taken_at.append(turns)
        return handshake(records)

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await checkpoint()
            turns += 1

    async with open_server(TLS, options=options(files)) as server, create_task_group() as tasks:
        streams = [client_over(dial(server.addresses[0]), Fallback()) for _ in range(50)]
        await until(lambda: server.stats.active == 50)
        await wait_all_tasks_blocked()
        monkeypatch.setattr(Records, "handshake", counted)
        for stream in streams:
            stream.records.handshake()
            stream._flush_now()
        tasks.start_soon(take_turns)
        await until(lambda: len(taken_at) == 50)
        tasks.cancel_scope.cancel()
        for stream in streams:
            stream._sock.close()

    # The events engine takes several steps in its slice of 1 ms, and trio runs ready tasks in random order.
    assert len(set(taken_at)) > 50 // 12


async def test_handshakes_over_their_share_wait_and_plain_listeners_do_not(
    files: Files, ca_options: ConnectOptions
) -> None:
    async with open_server(TLS, "tcp://127.0.0.1:0", options=options(files, max_connections=4)) as server:
        over_tls, plain = server.addresses
        with dial(over_tls) as half_open:
            await until(lambda: server.stats.active == 1)
            async with create_task_group() as tasks:
                served: list[bytes] = []

                async def wait_for_a_turn() -> None:
                    async with await connect(over_tls, options=ca_options) as client:
                        served.append(await client.exchange(b"patience"))

                tasks.start_soon(wait_for_a_turn)
                for _ in range(3):
                    async with await connect(plain) as client:
                        with fail_after(SOON):
                            await client.exchange(b"x")
                assert (server.stats.accepted, served) == (4, [])
                half_open.close()

        assert served == [b"patience"]


async def test_other_tasks_run_during_a_flood_of_small_records(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is echoed, including records still unparsed when close_notify came."""
    calls = 0
    process_more = Records.process_more

    def count(records: Records) -> bool:
        nonlocal calls
        more = process_more(records)
        calls += more
        return more

    async with open_server(TLS, options=options(files)) as server:
        async with await shake_hands(server.addresses[0], ssl.TLSVersion.TLSv1_3) as stream:
            said = os.urandom(2500)
            for number in range(len(said)):
                stream.records.send(said[number : number + 1])
            monkeypatch.setattr(Records, "process_more", count)
            async with create_task_group() as tasks:
                tasks.start_soon(stream.send_eof)
                assert await drain(stream) == said
        await until_closed(server)

    assert server.stats.closed == {"eof": 1}
    assert calls >= 2500 // 64 - 5


async def test_a_connection_without_its_proxy_header_counts_as_a_handshake(
    files: Files, ca_options: ConnectOptions
) -> None:
    """Otherwise clients of a proxy could use up the connection limit with handshakes."""
    proxied = options(files, max_connections=4, proxy_protocol="v2", proxy_trusted=("127.0.0.1",))
    async with open_server(TLS, options=proxied) as server:
        served: list[bytes] = []

        async def wait_for_a_turn() -> None:
            shown = replace(ca_options, proxy_header="v2")
            async with await connect(server.addresses[0], options=shown) as client:
                served.append(await client.exchange(b"patience"))

        with dial(server.addresses[0]) as half_said:
            half_said.sendall(b"\r\n\r\n")
            await until(lambda: server.stats.active == 1)
            async with create_task_group() as tasks:
                tasks.start_soon(wait_for_a_turn)
                await wait_all_tasks_blocked()
                assert (server.stats.accepted, served) == (1, [])
                half_said.close()

        assert served == [b"patience"]
        assert server._admission.handshakes.held == 0


async def test_an_established_connection_does_not_count_as_a_handshake(
    files: Files, ca_options: ConnectOptions
) -> None:
    async with (
        open_server(TLS, options=options(files, max_connections=4)) as server,
        await connect(server.addresses[0], options=ca_options) as one,
        await connect(server.addresses[0], options=ca_options) as other,
    ):
        await one.exchange(b"x")
        await other.exchange(b"x")


async def test_a_refused_connection_does_not_count_as_a_handshake(files: Files, ca_options: ConnectOptions) -> None:
    """It still lingers, so that the peer receives the alert."""
    async with open_server(TLS, options=options(files, max_connections=4, linger=3 * SOON)) as server:
        with dial(server.addresses[0]) as refused:
            refused.sendall(b"\x16\x03\x01\x00\x04nonsense")
            async with await connect(server.addresses[0], options=ca_options) as client:
                with fail_after(SOON):
                    await client.exchange(b"x")
            assert server.stats.active >= 1


async def test_an_idle_connection_is_closed_with_close_notify(files: Files) -> None:
    async with open_server(TLS, options=options(files, idle_timeout=0.2)) as server:
        async with await shake_hands(server.addresses[0]) as stream:
            with pytest.raises(EndOfStream), fail_after(SOON):
                await stream.receive()
        await until_closed(server)
        assert server.stats.closed == {"idle": 1}


async def test_a_drain_lets_a_peer_finish_and_sends_close_notify_to_the_rest(
    carrier: Address, files: Files
) -> None:
    async with open_server(carrier, options=options(files)) as server:
        busy, silent = [await shake_hands(server.addresses[0]) for _ in range(2)]
        async with busy, silent, create_task_group() as tasks:
            tasks.start_soon(server.drain, 0.5)
            await checkpoint()
            await busy.send(b"last words")
            await busy.send_eof()
            assert await drain(busy) == b"last words"
            assert await drain(silent) == b""
            await silent.aclose()

        await server.wait_closed()
        assert server.stats.closed == {"eof": 1, "drained": 1}


async def test_an_unfinished_handshake_is_drained(files: Files) -> None:
    async with open_server(TLS, options=options(files)) as server:
        with dial(server.addresses[0]) as sock:
            await until(lambda: server.stats.active == 1)
            with fail_after(SOON):
                await server.drain(0)
            assert sock.recv(1) == b""
        assert server.stats.closed == {"drained": 1}


@pytest.mark.parametrize("phase", ["half-open", "echoing"])
async def test_an_abort_does_not_wait_for_tls_peers(phase: str, files: Files) -> None:
    async with open_server(TLS, options=options(files, linger=60)) as server:
        if phase == "half-open":
            peer: socket.socket = dial(server.addresses[0])
        else:
            peer = (await shake_hands(server.addresses[0]))._sock
        with peer:
            await until(lambda: server.stats.active == 1)
            with fail_after(SOON):
                server.abort()
                await server.wait_closed()

        assert server.stats.closed == {"cancelled": 1}


@pytest.mark.fault(row=11, injected="a TLS peer floods, and neither reads nor answers the close")
async def test_a_peer_that_never_reads_delays_a_close_by_at_most_linger(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_stream, "CLOSE_TIMEOUT", 4 * SOON)  # the stream's timeout must not be added to linger
    async with open_server(TLS, options=options(files)) as server:
        stream = await shake_hands(server.addresses[0])
        async with create_task_group() as tasks:
            tasks.start_soon(stream.send, MUCH)  # and never reads
            await wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        start = time.monotonic()

    assert 0.29 < time.monotonic() - start < 0.3 + SOON
    with CancelScope() as scope:
        scope.cancel()
        await stream.aclose()


async def test_a_tls_peer_that_never_reads_gets_back_pressure(
    files: Files, ca_options: ConnectOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        open_server(TLS, options=options(files)) as server,
        await shake_hands(server.addresses[0]) as flooding,
    ):
        await fill(flooding)
        monkeypatch.setattr(tls_stream, "CLOSE_TIMEOUT", 0.1)
        # At most what the kernel buffers of both directions hold, which is less than was sent.
        [connection] = server._connections
        assert 0 < connection.totals[0] < len(MUCH)
        async with await connect(server.addresses[0], options=ca_options) as client:
            await client.exchange(bytes(1 << 20))


async def test_a_tls_server_leaves_no_descriptor_and_no_task(
    carrier: Address, files: Files, ca_options: ConnectOptions
) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), len(get_running_tasks())
    async with open_server(carrier, options=options(files)) as server:
        async with await connect(server.addresses[0], options=ca_options) as client:
            await client.exchange(b"x")
        with dial(server.addresses[0]):
            await until(lambda: server.stats.accepted == 2)
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), len(get_running_tasks())) == before


async def test_a_client_without_a_required_certificate_is_refused(files: Files, ca_options: ConnectOptions) -> None:
    wanted = TLSServerOptions(
        ssl_certfile=files.cert, ssl_keyfile=files.key, ssl_ca_certs=files.cacert, ssl_cert_reqs="required"
    )
    shown = ConnectOptions(tls=TLSClientOptions(cacert=files.cacert, cert=files.client))
    async with open_server(TLS, options=options(files, tls=wanted)) as server:
        async with await connect(server.addresses[0], options=shown) as client:
            await client.exchange(b"x")
        # In TLS 1.3 the client completes its handshake before the server refuses it.
        with pytest.raises(ConnectError, match=r"cert is missing: .* requires a client certificate"):
            async with await connect(server.addresses[0], options=ca_options) as client:
                await client.exchange(b"x")
        await until_closed(server, 2)
        assert server.stats.closed == {"eof": 1, "handshake": 1}


async def test_an_alpn_protocol_is_negotiated(files: Files) -> None:
    wanted = TLSServerOptions(ssl_certfile=files.cert, ssl_keyfile=files.key, ssl_alpn=("echo", "h2"))
    offered = ConnectOptions(tls=TLSClientOptions(cacert=files.cacert, alpn=("h2", "echo")))
    async with (
        open_server(TLS, options=options(files, tls=wanted)) as server,
        await connect(server.addresses[0], options=offered) as client,
    ):
        assert isinstance(client.stream, TLSStream)
        assert client.stream.records.tls.selected_alpn_protocol() == "echo"


async def serial(address: Address, ca_options: ConnectOptions) -> Any:
    async with await connect(address, options=ca_options) as client:
        await client.exchange(b"x")
        assert isinstance(client.stream, TLSStream)
        certificate = client.stream.records.tls.getpeercert()
        assert certificate is not None
        return certificate["serialNumber"]


async def test_a_reloaded_certificate_is_used_for_new_handshakes(
    tmp_path: Path, ca_options: ConnectOptions
) -> None:
    files = files_in(tmp_path)
    async with open_server(TLS, options=options(files)) as server:
        [address] = server.addresses
        assert server.certificates is not None
        async with await connect(address, options=ca_options) as client:
            old = await serial(address, ca_options)
            files_in(tmp_path)
            assert await serial(address, ca_options) == old
            server.certificates.reload()
            new = await serial(address, ca_options)
            assert new != old
            files.cert.write_text("broken")
            with pytest.raises(CertificateError, match=r"cert\.pem"):
                server.certificates.reload()
            assert await serial(address, ca_options) == new
            await client.exchange(b"as before")


async def test_a_self_signed_certificate_is_trusted_and_its_ca_removed_with_the_server() -> None:
    made_up = ServeOptions(tls=TLSServerOptions(ssl_self_signed=True))
    async with open_server(TLS, "tls://localhost:0", options=made_up) as server:
        assert server.certificates is not None
        cacert = server.certificates.cacert
        assert cacert is not None
        server.certificates.reload()
        for address in server.addresses:
            async with await connect(
                address, options=ConnectOptions(tls=TLSClientOptions(cacert=cacert))
            ) as client:
                await client.exchange(b"x")
    assert not cacert.exists()


async def test_an_untrusted_server_is_refused_unless_insecure(files: Files) -> None:
    async with open_server(TLS, options=options(files)) as server:
        with pytest.raises(ConnectError, match=r"certificate verify failed.*cacert"):
            await connect(server.addresses[0])
        insecure = ConnectOptions(tls=TLSClientOptions(insecure=True))
        async with await connect(server.addresses[0], options=insecure) as client:
            await client.exchange(b"x")
        elsewhere = ConnectOptions(tls=TLSClientOptions(cacert=files.cacert, sni="example.org"))
        with pytest.raises(ConnectError, match="Hostname mismatch"):
            await connect(server.addresses[0], options=elsewhere)
        await until_closed(server, 3)
        assert server.stats.closed == {"handshake": 2, "eof": 1}


async def test_the_error_says_that_a_server_does_not_speak_tls() -> None:
    def greet(sock: socket.socket) -> None:
        sock.sendall(b"220 welcome\r\n")
        receive_all(sock)

    with peer(greet) as address, pytest.raises(ConnectError, match="does not speak TLS"):
        await connect(address.replace("tcp", "tls"))


async def test_a_server_that_never_answers_the_handshake_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        with pytest.raises(ConnectError, match="no answer within 500ms"):
            await connect(f"tls://127.0.0.1:{port}", options=ConnectOptions(timeout=0.5))
        accepted, _ = mute.accept()
        with accepted:
            accepted.settimeout(SOON)
            assert receive_all(accepted)


async def test_tls_without_a_certificate_is_an_error_before_the_block() -> None:
    with pytest.raises(UsageError, match="ssl_certfile or ssl_self_signed"):
        async with open_server(TLS):
            pytest.fail("it opened")
