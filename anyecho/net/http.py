"""HTTP/1.1 on any byte stream: requests are read, passed to a handler, and answered.

It must not know what carries the stream, or which paths there are. h11 parses and formats; no other module imports
it.

* A response has a length, and is never chunked. Requests may be pipelined, and are answered in their order.
* A request that cannot be parsed, is too long or takes too long is refused with its status; the connection is then
  half-closed, read for a short time, and closed, so that the peer reads the refusal.
* A handler that raises an exception is answered with 500, and its traceback is logged.
"""

from __future__ import annotations

__all__ = ("HTTPConnection", "HTTPHandler", "HTTPLimits", "Request", "Response", "serve_http")

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Self, TypeAlias
from urllib.parse import unquote

import h11
from anyio import (
    BrokenResourceError,
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    current_time,
    move_on_after,
)
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint

logger = logging.getLogger("anyecho.server")

_CHUNK = 16384
#: States in which a response may still begin.
_UNANSWERED = (h11.IDLE, h11.SEND_RESPONSE)
#: What a request line has before the path if its sender takes this server for a proxy (RFC 9112, 3.2.2).
_ORIGIN = re.compile("^https?://[^/?]*", re.I)
#: These have no body and no length.
_EMPTY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


@dataclass(frozen=True, kw_only=True)
class HTTPLimits:
    """Seconds and bytes that a peer may take."""

    #: Seconds until the first byte of a request, from the first one to the last, to take a response, and to close
    #: after the last response.
    idle: float = 10.0
    request: float = 10.0
    send: float = 10.0
    close: float = 1.0
    #: Bytes of a request line with its header fields, and of a body. The first may be more by what one read brings.
    header: int = 16384
    body: int = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request that has arrived completely.

    * `method`: GET for a HEAD too, of which the response is sent without its body;
    * `path`: as it was sent, without the query, and `query` without its question mark;
    * `headers`: by the name in lower case; values of one name are joined with a comma.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def segments(self) -> tuple[str, ...]:
        """The parts of the path between slashes, percent-decoded: a part may hold a slash."""
        return tuple(unquote(part) for part in self.path.split("/")[1:])


@dataclass(frozen=True, kw_only=True)
class Response:
    """What a handler returns. The length and the fields of the connection are added to `headers`."""

    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: object, status: int = 200) -> Self:
        """Return `value` as JSON, with a newline for terminals."""
        return cls(status=status, body=json.dumps(value).encode() + b"\n", content_type="application/json")


HTTPHandler: TypeAlias = Callable[[Request], Awaitable[Response]]


async def serve_http(stream: ByteStream, handle: HTTPHandler, limits: HTTPLimits | None = None) -> None:
    """Answer the requests on `stream` with what `handle` returns, until either side ends; close the stream.

    Errors of the network end it too, without an exception. A cancellation closes at once. No limit counts while
    `handle` runs.
    """
    await HTTPConnection(stream, handle, limits or HTTPLimits()).run()


class _Refused(Exception):
    """The request is answered with `status`, and is the last one."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(eq=False)
class HTTPConnection:
    """A connection of `serve_http`, which tells whether it may be closed."""

    stream: ByteStream
    handle: HTTPHandler
    limits: HTTPLimits
    #: The `current_time` of the last response, or of the start; None while a request is being answered.
    idle_since: float | None = field(init=False, default_factory=current_time)
    #: Whether the request is a HEAD.
    _head_only: bool = field(init=False, default=False)
    _h11: h11.Connection = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=self.limits.header)

    async def run(self) -> None:
        try:
            with suppress(BrokenResourceError, ClosedResourceError, EndOfStream):
                while await self._serve_next():
                    self._h11.start_next_cycle()
        finally:
            with move_on_after(self.limits.close, shield=True):
                await self.stream.aclose()

    async def _serve_next(self) -> bool:
        """Answer the next request; return whether another one may follow."""
        self.idle_since = current_time()
        try:
            request = await self._read_request()
            if request is None:
                return False

            self.idle_since = None
            response, last = await self._answer(request), False
        except (h11.RemoteProtocolError, _Refused) as exc:
            if self._h11.our_state not in _UNANSWERED:
                return False
            status = exc.status if isinstance(exc, _Refused) else exc.error_status_hint
            response, last = Response(status=status, body=f"{exc}\n".encode()), True

        with move_on_after(self.limits.send):
            await self.stream.send(self._format(response, last=last))
            if self._h11.our_state is self._h11.their_state is h11.DONE:
                return True

        self.idle_since = current_time()  # the response is sent: it may be closed for another one
        await self._linger()
        return False

    async def _read_request(self) -> Request | None:
        """Return the next request; None if there is none. Raises `_Refused` and `h11.RemoteProtocolError`."""
        begun = bool(self._h11.trailing_data[0])  # pipelined
        self._head_only = False
        head: h11.Request | None = None
        body = bytearray()
        with CancelScope() as scope:
            scope.deadline = current_time() + (self.limits.request if begun else self.limits.idle)
            while True:
                event = self._h11.next_event()
                if event is h11.NEED_DATA:
                    await self._read()
                    if not begun:
                        begun = True
                        scope.deadline = current_time() + self.limits.request
                elif isinstance(event, h11.Request):
                    head = event
                    self._check_head(head)
                elif isinstance(event, h11.Data):
                    body += event.data
                    self._check_size(len(body))
                else:
                    return None if head is None else _request(head, bytes(body))

        if begun:
            raise _Refused(HTTPStatus.REQUEST_TIMEOUT, f"no complete request within {self.limits.request:g} s")

        return None

    async def _read(self) -> None:
        if self._h11.they_are_waiting_for_100_continue:
            response = h11.InformationalResponse(status_code=HTTPStatus.CONTINUE, headers=[], reason=b"Continue")
            await self.stream.send(self._h11.send(response) or b"")
        try:
            chunk = await self.stream.receive(_CHUNK)
        except EndOfStream:
            chunk = b""
        self._h11.receive_data(chunk)

    def _check_head(self, head: h11.Request) -> None:
        self._head_only = head.method == b"HEAD"
        if head.http_version not in (b"1.0", b"1.1"):  # h11 answers to all with HTTP/1.1
            raise _Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "the version is not HTTP/1.0 or HTTP/1.1")

        self._check_size(int(dict(head.headers).get(b"content-length", 0)))

    def _check_size(self, size: int) -> None:
        if size > self.limits.body:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is more than {self.limits.body} bytes")

    async def _answer(self, request: Request) -> Response:
        response = Response(status=500, body=b"internal error\n")
        # `except` would not see a cancellation in a group with the exception.
        try:
            response = await self.handle(request)
        except* Exception as group:
            error = group.exceptions[0] if len(group.exceptions) == 1 else group
            logger.error("the answer to %s %s failed", request.method, request.path, exc_info=error)

        return response

    def _format(self, response: Response, *, last: bool) -> bytes:
        fields = dict(response.headers)
        if response.status not in _EMPTY:
            fields |= {"Content-Type": response.content_type, "Content-Length": str(len(response.body))}
        if last:
            fields["Connection"] = "close"
        reason = HTTPStatus(response.status).phrase.encode()
        events: list[Any] = [
            h11.Response(status_code=response.status, headers=[*fields.items()], reason=reason),
            h11.Data(data=b"" if self._head_only else response.body),
            h11.EndOfMessage(),
        ]
        return b"".join(self._h11.send(event) or b"" for event in events)

    async def _linger(self) -> None:
        """Half-close, and read what the peer still sends: a reset would destroy the response."""
        with move_on_after(self.limits.close):
            with suppress(NotImplementedError):  # anyio's stream over TLS has no half-close
                await self.stream.send_eof()
            while True:
                await self.stream.receive()
                # On asyncio, only a checkpoint is cancelled if the peer sends in every pass of the loop.
                await checkpoint()


def _request(head: h11.Request, body: bytes) -> Request:
    headers: dict[str, str] = {}
    for name, value in ((name.decode("ascii"), value.decode("latin-1")) for name, value in head.headers):
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    path, _, query = _ORIGIN.sub("", head.target.decode("latin-1"), count=1).partition("?")
    method = head.method.decode("ascii")
    return Request(
        method="GET" if method == "HEAD" else method,
        path=path or "/",
        query=query,
        headers=headers,
        body=body,
    )
