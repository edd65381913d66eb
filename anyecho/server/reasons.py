"""Why connections end: the close reasons, and the one for an error."""

from __future__ import annotations

__all__ = ("CLOSED_BY_SERVER", "NETWORK_ERRORS", "CloseReason", "UpstreamError", "reason_for")

import errno
from collections.abc import Iterator
from enum import StrEnum
from typing import Self

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream

from anyecho.faults.fault import ConnectionEnded
from anyecho.net.proxy.header import ProxyProtocolError
from anyecho.net.tls.errors import TLSError, TLSTruncated
from anyecho.server.phases import HANDSHAKE, HEADER, Phase
from anyecho.streams import LimitReached


class UpstreamError(BrokenResourceError):
    """The server that a connection is forwarded to refused or lost its own connection."""


class CloseReason(StrEnum):
    """Why a connection ended: a key of `Stats.closed`, with a `description` in one sentence."""

    description: str

    def __new__(cls, value: str, description: str = "") -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.description = description
        return member

    EOF = "eof", "The peer sent EOF, and the kernel accepted the whole echo."
    RESET = "reset", "The peer reset the connection, as some health checks do, or left its echo unread."
    BROKEN = "broken", "The kernel reported another error or a timeout, such as an unreachable host."
    IDLE = "idle", "No byte moved for the idle timeout."
    WRITE = "write", "The peer took none of the pending echo for the write timeout."
    DURATION = "duration", "The connection reached its maximum duration."
    BYTES = "bytes", "The peer sent more than the maximum number of bytes."
    RATE = "rate", "Fewer bytes per second than the minimum rate were echoed."
    PER_IP = "per_ip", "The client IP had the maximum number of connections already."
    OVER_LIMIT = "over_limit", "The server had the maximum number of connections already."
    UNTRUSTED = "untrusted", "The peer is outside the networks of the trusted proxies."
    PROXY = "proxy", "The PROXY header was missing or invalid."
    PROXY_TIMEOUT = "proxy_timeout", "The PROXY header was incomplete at its time limit."
    HANDSHAKE = "handshake", "The TLS handshake failed, was abandoned, or was incomplete at its time limit."
    TLS_TRUNCATED = "tls_truncated", "The peer sent a FIN without close_notify: data may be missing."
    TLS_ERROR = "tls_error", "The peer sent an invalid TLS record."
    FAULT = "fault", "A fault of the server ended the connection."
    UPSTREAM = "upstream", "The server that it was forwarded to refused or lost its connection."
    RETURNED = "returned", "The server's handler returned before EOF from the peer."
    HANDLER = "handler", "The server's handler raised an exception, logged with its traceback."
    CONTROL = "control", "The control API disabled, changed or deleted its proxy."
    DRAINED = "drained", "The grace period of a drain was over, or the server's block was left."
    CANCELLED = "cancelled", "The server was aborted, or an exception or a cancellation left its block."
    ERROR = "error", "The server has a bug, logged with its traceback."


#: Reasons of a close by the server that no byte from the peer caused. An EOF that arrived earlier takes precedence.
CLOSED_BY_SERVER = frozenset(
    map(CloseReason, ("drained", "cancelled", "idle", "duration", "rate", "write", "returned"))
)

#: Errors caused by peers and networks. `ClosedResourceError`: the poller stopped during a connection.
NETWORK_ERRORS = (BrokenResourceError, ClosedResourceError, EndOfStream, OSError)
#: Each error with its reason. The first match counts: `TLSTruncated` is a `TLSError`.
_REASONS = {
    ConnectionEnded: CloseReason.FAULT,
    UpstreamError: CloseReason.UPSTREAM,
    ProxyProtocolError: CloseReason.PROXY,
    LimitReached: CloseReason.BYTES,
    TLSTruncated: CloseReason.TLS_TRUNCATED,
    TLSError: CloseReason.TLS_ERROR,
}


def reason_for(error: Exception, phase: Phase, *, pending: bool) -> tuple[CloseReason, BaseException]:
    """Return the close reason for `error`, which ended `phase`, and the cause of `error`.

    With `pending` echo, a timeout of the kernel is a write timeout, which the kernel detected before the reaper.
    """
    if ExceptionGroup("", [error]).split((*NETWORK_ERRORS, *_REASONS))[1] is not None:
        return CloseReason.ERROR, error

    causes = list(_causes(error))
    if phase is HANDSHAKE:
        return CloseReason.HANDSHAKE, causes[-1]

    for cause in causes:
        for kind, reason in _REASONS.items():
            if isinstance(cause, kind):
                return reason, cause
        if phase is HEADER and isinstance(cause, EndOfStream):
            return CloseReason.EOF, cause
        if isinstance(cause, ConnectionResetError | BrokenPipeError):
            return CloseReason.RESET, cause
        # TCP_USER_TIMEOUT is over.
        if pending and getattr(cause, "errno", None) == errno.ETIMEDOUT:
            return CloseReason.WRITE, cause

    return CloseReason.BROKEN, causes[-1]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error`, the errors in its group, and the causes of each (``__cause__``)."""
    yield error
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else filter(None, [error.__cause__])
    for each in inner:
        yield from _causes(each)
