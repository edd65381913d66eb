"""A health check connects and leaves, with or without bytes: it is neither an error nor logged."""

from __future__ import annotations

import logging

import pytest
from anyio import to_thread

from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.net.pairs import reset
from tests.support.certificates import Files
from tests.support.peers import dial, exchange, until
from tests.support.tls import options as over_tls

PLAIN = ServeOptions(linger=10)
PROXIED = ServeOptions(linger=10, proxy_protocol="require", proxy_trusted=("127.0.0.1",))


async def closed_after(
    address: str, options: ServeOptions, *, sent: bytes, read: bool, leave: str, caplog: pytest.LogCaptureFixture
) -> str:
    """Return the close reason of a connection that sends, may read the echo, and leaves."""
    async with open_server(address, options=options) as server:
        sock = dial(server.addresses[0])
        if sent and read:
            assert await to_thread.run_sync(exchange, sock, sent) == sent
        elif sent:
            sock.sendall(sent)
        if leave == "reset":
            reset(sock)
        else:
            sock.close()
        await until(lambda: server.stats.closed.total() == 1)

    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    [reason] = server.stats.closed
    return reason


@pytest.mark.parametrize(("sent", "read"), [(b"", False), (b"PING\n", True), (b"PING\n", False)])
@pytest.mark.parametrize("leave", ["eof", "reset"])
async def test_a_health_check_is_an_eof_or_a_reset(
    sent: bytes, read: bool, leave: str, caplog: pytest.LogCaptureFixture
) -> None:
    reason = await closed_after("tcp://127.0.0.1:0", PLAIN, sent=sent, read=read, leave=leave, caplog=caplog)

    # The kernel resets a connection that is closed with an unread echo.
    assert reason in ({"eof", "reset"} if sent and not read else {leave})


@pytest.mark.parametrize("leave", ["eof", "reset"])
async def test_a_health_check_without_a_proxy_header_is_no_invalid_header(
    leave: str, caplog: pytest.LogCaptureFixture
) -> None:
    reason = await closed_after("tcp://127.0.0.1:0", PROXIED, sent=b"", read=False, leave=leave, caplog=caplog)

    assert reason == leave


@pytest.mark.parametrize("leave", ["eof", "reset"])
async def test_a_health_check_without_tls_abandons_the_handshake(
    leave: str, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    options = over_tls(files)
    reason = await closed_after("tls://127.0.0.1:0", options, sent=b"", read=False, leave=leave, caplog=caplog)

    assert reason == "handshake"
