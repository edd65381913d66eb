"""Rows 17 to 19: datagrams that must not be answered, and answers that cannot be sent."""

from __future__ import annotations

import os
import socket
import time

import pytest
from anyio import move_on_after, to_thread

from anyecho.address import Address, UDPAddress
from anyecho.client.client import connect
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.faults.scene import time_limit
from tests.faults.table import Observed, Scene, injects
from tests.support.datagrams import fail, forge, forger, udp_client
from tests.support.peers import until

UDP = "udp://127.0.0.1:0"


def port_of(server: Server) -> int:
    [address, *_] = server.addresses
    assert isinstance(address, UDPAddress)
    return address.port


async def ask(address: Address, payload: bytes, *, source: str = "127.7.7.7") -> bytes:
    """Send `payload` to `address` from a new socket; return the answer."""
    with udp_client(address, source=source) as sock:
        sock.send(payload)
        return await to_thread.run_sync(sock.recv, 65536)


@injects(
    17,
    "raw datagrams from ports 0 and 7, the own port, two broadcasts, a group; bound to one address and to all",
    alone=True,
)
async def forged(_: Scene) -> Observed:
    observed: dict[str, object] = {}
    for bind in (UDP, "udp://:0"):
        with forger() as raw:
            async with open_server(bind) as server:
                port = port_of(server)
                target = UDPAddress(host="127.0.0.1", port=port)
                sources = {
                    **{("127.0.0.1", 0): "port_0", ("127.0.0.1", 7): "port_below_1024"},
                    **{("127.0.0.1", port): "own_port", ("127.0.0.2", port): "own_port"},
                    **{("255.255.255.255", 5000): "broadcast", ("127.255.255.255", 5000): "broadcast"},
                    **{("224.0.0.1", 5000): "multicast"},
                }
                counts = server.stats.datagrams
                for number, source in enumerate(sources, start=1):
                    forge(raw, source, target)
                    await until(lambda: counts.received == number)  # noqa: B023 - called in this turn only
                assert await ask(target, b"honest") == b"honest"
                reasons = list(sources.values())
                assert counts.dropped == {reason: reasons.count(reason) for reason in reasons}
                assert (counts.echoed, counts.errors) == (1, {})
                observed[bind] = {"dropped": dict(counts.dropped), "answered": counts.echoed}

    return {**observed, "a client with a real source": "answered"}


@injects(
    18,
    "one raw datagram to a server with the source of another server; both may answer 500/s and 50 at once",
    alone=True,
)
async def echo_meets_echo(_: Scene) -> Observed:
    options = ServeOptions(udp_rate=500, udp_burst=50)
    with forger() as raw:
        async with (
            open_server(UDP, options=options) as one,
            open_server("udp://127.0.0.2:0", options=options) as other,
        ):
            counts = one.stats.datagrams, other.stats.datagrams

            def made() -> int:
                return sum(each.received for each in counts)

            start = time.monotonic()
            forge(raw, ("127.0.0.2", port_of(other)), one.addresses[0])
            await until(lambda: sum(each.dropped["rate"] for each in counts) == 1)
            took = time.monotonic() - start
            loop = made()
            assert 2 * 50 <= loop + 1 <= 2 * (50 + 500 * took) + 2
            with move_on_after(0.3) as quiet:
                await until(lambda: made() > loop)
            assert quiet.cancelled_caught
            for server in (one, other):
                assert await ask(server.addresses[0], b"honest") == b"honest"

    return {"datagrams": loop, "ended after": f"{took * 1000:.0f} ms", "in the next 300 ms": 0}


#: A closed client port, a datagram too large for the path, a lost route, and so on.
ERRORS = ("ECONNREFUSED", "EHOSTUNREACH", "EINVAL", "EMSGSIZE", "ENETUNREACH", "ENOBUFS", "EPERM")


@injects(19, "datagrams of 0, 1, 1472, 1473 and 65507 bytes; 150 at once; 5 from clients that have closed")
async def all_sizes(_: Scene) -> Observed:
    async with open_server(UDP) as server:
        [address] = server.addresses
        for size in (0, 1, 1472, 1473, 65507):
            payload = os.urandom(size)
            assert await ask(address, payload) == payload
        with udp_client(address, source="127.0.0.3") as sock:
            burst = [b"%d" % number for number in range(150)]
            for datagram in burst:
                sock.send(datagram)
            assert await to_thread.run_sync(lambda: [sock.recv(100) for _ in burst]) == burst
        for _client in range(5):
            with udp_client(address, source="127.0.0.4") as sock:
                sock.send(b"and gone")
        await until(lambda: server.stats.datagrams.received == 160)
        assert await ask(address, b"honest") == b"honest"
        return {"echoed": "5 of 5, 150 of 150", "errors": dict(server.stats.datagrams.errors)}


@injects(19, f"receiving, then sending, fails with {len(ERRORS)} errors, EMSGSIZE and ENETUNREACH among them")
async def every_error(_: Scene) -> Observed:
    observed: dict[str, object] = {}
    for direction in ("recv", "send"):
        with pytest.MonkeyPatch.context() as patch:
            fail(patch, direction, *ERRORS)
            async with open_server(UDP) as server:
                [address] = server.addresses
                counts = server.stats.datagrams
                if direction == "send":
                    with udp_client(address) as sock:
                        for _error in ERRORS:
                            sock.send(b"lost")
                        await until(lambda: counts.received == len(ERRORS))  # noqa: B023 - in this turn only
                assert await ask(address, b"kept") == b"kept"
                assert counts.errors == dict.fromkeys(ERRORS, 1)
                assert counts.echoed == 1
                observed[direction] = dict(counts.errors)

    return {**observed, "the next datagram": "echoed"}


@injects(19, "a client sends datagrams to a closed port")
async def refused(_: Scene) -> Observed:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        address = UDPAddress(host="127.0.0.1", port=gone.getsockname()[1])
    async with await connect(address) as client:
        start = time.monotonic()
        with pytest.raises(Exception, match="refused") as lost:
            await client.exchange(b"hello?")
        took = time.monotonic() - start
    assert took < time_limit(0.2)
    return {"said": str(lost.value).replace(str(address.port), "PORT"), "in": f"{took * 1000:.1f} ms"}
