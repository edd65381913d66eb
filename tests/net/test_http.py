"""HTTP requests and their answers, on streams in memory and on sockets."""

from __future__ import annotations

import logging
import re
import socket
import subprocess
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from anyio import Event, create_task_group, fail_after, sleep_forever, to_thread

from anyecho.net.http import HTTPConnection, HTTPHandler, HTTPLimits, Request, Response, serve_http
from anyecho.net.poller import Fallback, Poller
from tests.net.pairs import KINDS, raw_pair, reset, stream_over
from tests.support.machine import program
from tests.support.memory import memory_pair
from tests.support.peers import SOON, receive_all
from tests.support.tasks import wait_all_tasks_blocked

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SMALL = HTTPLimits(header=1024, body=1000)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


async def show(request: Request) -> Response:
    """Answer with the request."""
    return Response(body=f"{request.method} {request.path} {request.query} ".encode() + request.body)


def parsed(data: bytes, *, bodies: bool = True) -> list[Answer]:
    """Return the answers in `data`. Without `bodies`, each has a length only."""
    answers: list[Answer] = []
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator
        status, *fields = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
        length = int(headers.get("content-length", 0)) if bodies else 0
        answers.append(Answer(int(status.split()[1]), headers, data[:length]))
        data = data[length:]

    return answers


async def answers_to(*parts: bytes, handle: HTTPHandler = show, bodies: bool = True) -> list[Answer]:
    """Send `parts` and EOF, and return the answers until the server closes."""
    ours, theirs = memory_pair()
    for part in parts:
        await ours.send(part)
    await ours.send_eof()
    async with ours:
        with fail_after(SOON):
            await serve_http(theirs, handle, SMALL)
            return parsed(b"".join([chunk async for chunk in ours]), bodies=bodies)


@pytest.mark.parametrize(
    ("request_bytes", "shown"),
    [
        (GET, b"GET /  "),
        (b"GET /a/b?c=1&d HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /a/b c=1&d "),
        (b"GET //a//b/ HTTP/1.1\r\nHost: x\r\n\r\n", b"GET //a//b/  "),
        (b"GET /a%2Fb HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /a%2Fb  "),
        (b"GET http://x:1/a?b HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /a b "),
        (b"GET HTTPS://x HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /  "),
        (b"GET /[?[ HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /[ [ "),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", b"OPTIONS *  "),
        (b"GET / HTTP/1.0\r\n\r\n", b"GET /  "),
        (b"PATCH /p HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody", b"PATCH /p  body"),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n",
            b"POST /  body",
        ),
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /  "),
    ],
)
@pytest.mark.parametrize("dripped", [False, True])
async def test_a_request_is_answered_however_it_arrives(request_bytes: bytes, shown: bytes, dripped: bool) -> None:
    parts = [bytes([byte]) for byte in request_bytes] if dripped else [request_bytes]

    [answer] = await answers_to(*parts)

    assert (answer.status, answer.body) == (200, shown)


async def test_requests_on_one_connection_are_answered_in_order() -> None:
    paths = [f"/{number}" for number in range(50)]

    answers = await answers_to(b"".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in paths))

    assert [each.body.decode() for each in answers] == [f"GET {path}  " for path in paths]


@pytest.mark.parametrize("request_bytes", [GET[:-2] + b"Connection: close\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"])
async def test_a_connection_ends_after_the_answer_if_the_peer_wants_no_other(request_bytes: bytes) -> None:
    [answer] = await answers_to(request_bytes + GET)

    assert answer.headers["connection"] == "close"


async def test_a_head_request_is_answered_like_a_get_without_the_body() -> None:
    first, second = await answers_to(GET.replace(b"GET", b"HEAD") * 2, bodies=False)

    assert first == second == (200, {"content-type": "text/plain; charset=utf-8", "content-length": "7"}, b"")


async def test_values_of_one_header_field_are_joined_and_names_are_lower_case() -> None:
    async def show_fields(request: Request) -> Response:
        return Response.json(dict(request.headers))

    [answer] = await answers_to(GET[:-2] + b"X-Tag: a\r\nx-tag: b\xe9\r\n\r\n", handle=show_fields)

    assert answer.headers["content-type"] == "application/json"
    assert answer.body == b'{"host": "x", "x-tag": "a, b\\u00e9"}\n'


def test_segments_of_a_path_are_decoded_after_it_is_split() -> None:
    path = "/proxies/tcp%3A%2F%2F127.0.0.1%3A1/toxics"

    assert Request(method="GET", path=path).segments == ("proxies", "tcp://127.0.0.1:1", "toxics")


async def test_a_response_without_content_has_no_length() -> None:
    async def empty(request: Request) -> Response:
        return Response(status=204, headers={"X-Id": "7"})

    first, second = await answers_to(GET * 2, handle=empty)

    assert first == second == (204, {"x-id": "7"}, b"")


async def test_a_peer_that_waits_for_100_continue_is_told_to_send_its_body() -> None:
    ours, theirs = memory_pair()
    async with ours, create_task_group() as tasks:
        tasks.start_soon(serve_http, theirs, show, SMALL)
        with fail_after(SOON):
            await ours.send(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
            assert await ours.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
            await ours.send(b"body")
            assert (await ours.receive()).endswith(b"\r\n\r\nPUT /  body")
            await ours.send_eof()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /" + b"a" * 2000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 400, 431),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n", 413),
        (b"HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"a" * 1001, 413),
    ],
)
async def test_a_bad_request_is_refused_and_the_last_one(request_bytes: bytes, status: int) -> None:
    calls: list[Request] = []

    async def handle(request: Request) -> Response:
        calls.append(request)
        return Response()

    [answer] = await answers_to(request_bytes, GET, handle=handle, bodies=not request_bytes.startswith(b"HEAD"))

    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert calls == []


@pytest.mark.parametrize(
    "request_bytes", [b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbod", GET[:-2], b"G"]
)
async def test_a_request_that_the_peer_ends_too_early_is_refused(request_bytes: bytes) -> None:
    [answer] = await answers_to(request_bytes)

    assert (answer.status, answer.headers["connection"]) == (400, "close")


async def test_a_bad_request_after_a_good_one_is_refused() -> None:
    assert [each.status for each in await answers_to(GET, b"nonsense\r\n\r\n")] == [200, 400]


async def test_a_connection_without_a_request_has_no_answer() -> None:
    assert await answers_to() == []


async def test_a_handler_that_fails_is_answered_with_500_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def raise_error() -> None:
        raise LookupError("the reason")

    async def fail(request: Request) -> Response:
        async with create_task_group() as tasks:
            tasks.start_soon(raise_error)
        return Response()

    async def handle(request: Request) -> Response:
        return await (show if request.path == "/" else fail)(request)

    answers = await answers_to(GET.replace(b"/ ", b"/broken "), GET, handle=handle)

    assert [each.status for each in answers] == [500, 200]
    [record] = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "the answer to GET /broken failed")
    assert "LookupError: the reason" in caplog.text


async def test_a_cancelled_handler_has_no_answer_and_the_stream_is_closed() -> None:
    ours, theirs = memory_pair()
    began = Event()

    async def wait(request: Request) -> Response:
        began.set()
        await sleep_forever()
        return Response()

    await ours.send(GET)
    async with ours:
        async with create_task_group() as tasks:
            tasks.start_soon(serve_http, theirs, wait)
            with fail_after(SOON):
                await began.wait()
                tasks.cancel_scope.cancel()

        assert [chunk async for chunk in ours] == []


async def test_a_connection_tells_since_when_it_is_idle() -> None:
    ours, theirs = memory_pair()
    during: list[float | None] = []

    async def handle(request: Request) -> Response:
        during.append(connection.idle_since)
        return Response()

    connection = HTTPConnection(theirs, handle, SMALL)
    async with ours, create_task_group() as tasks:
        tasks.start_soon(connection.run)
        await wait_all_tasks_blocked()
        begin = connection.idle_since
        await ours.send(GET)
        await ours.receive()
        await wait_all_tasks_blocked()
        later = connection.idle_since
        await ours.send_eof()

    assert during == [None]
    assert begin is not None
    assert later is not None
    assert later >= begin


@pytest.mark.parametrize("kind", KINDS)
async def test_a_body_over_the_limit_is_refused_while_its_sender_still_sends(
    kind: str, poller: Poller | Fallback, opened: ExitStack
) -> None:
    peer, ours = raw_pair(kind)
    opened.enter_context(peer).settimeout(SOON)

    def send_and_read() -> bytes:
        peer.sendall(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n" + bytes(3_000_000))
        return receive_all(peer)

    async with create_task_group() as tasks:
        tasks.start_soon(serve_http, stream_over(ours, poller), show)
        [answer] = parsed(await to_thread.run_sync(send_and_read))
        peer.close()

    assert (answer.status, answer.body) == (413, b"the body is more than 1048576 bytes\n")


async def test_a_reset_ends_a_connection_without_an_error(poller: Poller | Fallback) -> None:
    peer, ours = raw_pair("tcp")
    peer.sendall(b"GET / HTTP/1.1\r\n")
    async with create_task_group() as tasks:
        tasks.start_soon(serve_http, stream_over(ours, poller), show)
        await wait_all_tasks_blocked()
        reset(peer)


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["/a?b", "/c"], "GET /a b <200 1>GET /c  <200 0>"),
        (["-X", "DELETE", "/a"], "DELETE /a  <200 1>"),
        (["--head", "/a"], r"HTTP/1.1 200 OK\s.*Content-Length: 8\s+<200 1>"),
        (["-d", "x" * 2000, "/a"], "POST /a  x{2000}<200 1>"),
        (["-H", "Expect: 100-continue", "-d", "body", "/a"], "POST /a  body<200 1>"),
        (["-H", "Transfer-Encoding: chunked", "-d", "body", "/a"], "POST /a  body<200 1>"),
        (["--http1.0", "/a"], "GET /a  <200 1>"),
        (["-d", "x" * 100_000, "/a"], "the body is more than 50000 bytes\n<413 1>"),
        (["-H", "A: " + "b" * 60_000, "/a"], "Receive buffer too long\n<431 1>"),
        (["-H", "Host:", "/a"], "Missing mandatory Host: header\n<400 1>"),
    ],
)
async def test_curl_gets_its_answers(
    poller: Poller | Fallback, opened: ExitStack, arguments: list[str], output: str
) -> None:
    listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    listener.settimeout(SOON)
    host = f"http://127.0.0.1:{listener.getsockname()[1]}"
    urls = [host + each if each.startswith("/") else each for each in arguments]
    command = [program("curl"), "-q", "-sS", "--noproxy", "*", "-w", "<%{http_code} %{num_connects}>", *urls]

    def call() -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=SOON).stdout

    async def serve() -> None:
        sock, _ = await to_thread.run_sync(listener.accept)
        await serve_http(stream_over(sock, poller), show, HTTPLimits(body=50_000))

    async with create_task_group() as tasks:
        tasks.start_soon(serve)
        assert re.fullmatch(output, await to_thread.run_sync(call), re.DOTALL)
