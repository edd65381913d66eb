"""The client side of TLS: the server name to verify, the handshake, and the error if the handshake fails.

In TLS 1.3 the client completes its handshake before the server has verified the client's certificate (RFC 8446,
section 2). A server that refuses the client therefore sends an alert, which the client's first read returns.
"""

from __future__ import annotations

__all__ = ("client_session", "connect_error", "is_refusal", "secure")

import ssl

from anyio import BrokenResourceError, CancelScope

from anyecho.address import Address, StreamAddress, TCPAddress
from anyecho.errors import ConnectError
from anyecho.net.names import host_name, unmapped
from anyecho.net.stream import PolledStream
from anyecho.net.tls.contexts import TLSClientOptions, client_context
from anyecho.net.tls.errors import alert_of, explain
from anyecho.net.tls.records import Records
from anyecho.net.tls.stream import TLSStream

#: What to do if the server's certificate fails verification.
_VERIFY_HINT = " (cacert names a CA to trust, insecure skips verification)"
#: Alerts by which a server refuses a client's certificate (RFC 8446, section 6.2), and their meaning.
_REFUSALS = {
    "certificate_required": "",
    "unknown_ca": "the server does not trust its CA",
    "certificate_expired": "it has expired",
    "certificate_revoked": "it is revoked",
    "unsupported_certificate": "the server does not support its type",
    "access_denied": "it grants no access to the server",
    "bad_certificate": "it is damaged, or its signature is wrong",
    "certificate_unknown": "it is not acceptable",
    "no_certificate": "",
    "decrypt_error": "its key does not match, or a signature is wrong",
    "handshake_failure": "",
}


def client_session(address: StreamAddress, options: TLSClientOptions) -> Records:
    """A session that requests and verifies the host's name.

    Raises `ConnectError` for a name that no certificate can have, and the errors of `client_context`.
    """
    # A path contains no host name. A Unix socket is most likely of this machine.
    host = address.host if isinstance(address, TCPAddress) else ""
    name = host_name(options.sni or unmapped(host).partition("%")[0]) or "localhost"
    context = client_context(options)
    try:
        return Records(context, server_side=False, server_hostname=name)
    except (ssl.SSLError, ValueError) as exc:
        raise ConnectError(f"cannot connect to {address}: no certificate can be for {name!r}") from exc


async def secure(stream: PolledStream, records: Records, address: Address) -> TLSStream:
    """Perform the handshake on `stream`, which is closed if it fails. Raises `ConnectError`."""
    secured = TLSStream.wrap(stream, records)
    try:
        await secured.handshake()
    except BaseException as exc:
        with CancelScope(shield=True):
            await secured.aclose()
        if not isinstance(exc, BrokenResourceError):
            raise
        raise connect_error(str(address), exc.__cause__ or exc) from exc

    return secured


def is_refusal(exc: BaseException) -> bool:
    """Whether `exc` is an alert by which a server refuses the client's certificate or handshake."""
    return alert_of(exc) in _REFUSALS


def connect_error(address: str, exc: BaseException) -> ConnectError:
    """The error to raise for a handshake with `address` that failed with `exc`."""
    alert = alert_of(exc)
    if alert in ("certificate_required", "no_certificate"):
        return ConnectError(f"cert is missing: {address} requires a client certificate", options=("cert",))
    if alert == "handshake_failure":
        # TLS 1.2 has no alert for a missing certificate.
        return ConnectError(
            f"cannot connect to {address}: it refuses the handshake (no cipher in common, or it requires a client "
            "certificate)"
        )
    if why := _REFUSALS.get(alert or ""):
        return ConnectError(f"cert is refused by {address}: {why} (alert {alert})", options=("cert",))

    hint = _VERIFY_HINT if isinstance(exc, ssl.SSLCertVerificationError) else ""
    return ConnectError(f"cannot connect to {address}: {explain(exc)}{hint}")
