"""The client's side of a TLS session: the name it asks for, the handshake, and what is told if that fails.

In TLS 1.3 the client's handshake is over before the server has seen its certificate (RFC 8446, section 2). So a
server refuses a client by the first thing that a read brings.
"""

from __future__ import annotations

__all__ = ("client_session", "connect_error", "is_refusal", "secure")

import ssl

from anyio import BrokenResourceError, CancelScope

from anyecho.address import Address, TCPAddress, UnixAddress
from anyecho.errors import ConnectError
from anyecho.net.names import host_name, unmapped
from anyecho.net.stream import PolledStream
from anyecho.net.tls import TLSStream
from anyecho.net.tls_contexts import TLSClientOptions, client_context
from anyecho.net.tls_errors import alert_of, explain
from anyecho.net.tls_records import Records

#: What to do about a certificate nobody vouches for.
_VERIFY_HINT = " (cacert names a CA to believe, insecure believes anybody)"
#: Alerts by which a server refuses what a client has shown (RFC 8446, section 6.2), and what they say of it.
_REFUSALS = {
    "certificate_required": "",
    "unknown_ca": "its CA is not known there",
    "certificate_expired": "it has expired",
    "certificate_revoked": "it is revoked",
    "unsupported_certificate": "its kind is not supported there",
    "access_denied": "it gives no access there",
    "bad_certificate": "it is damaged, or not signed as it should be",
    "certificate_unknown": "it is not acceptable",
    "no_certificate": "",
    "decrypt_error": "its key does not fit, or a signature is wrong",
    "handshake_failure": "",
}


def client_session(address: TCPAddress | UnixAddress, options: TLSClientOptions) -> Records:
    """A session that asks for the host's name and verifies it. Raises `ConnectError`, and as `client_context`."""
    # A path says nothing of who listens there: most likely it is the machine itself.
    host = address.host if isinstance(address, TCPAddress) else ""
    name = host_name(options.sni or unmapped(host).partition("%")[0]) or "localhost"
    context = client_context(options)
    try:
        return Records(context, server_side=False, server_hostname=name)
    except (ssl.SSLError, ValueError) as exc:
        raise ConnectError(f"cannot connect to {address}: no certificate can be for {name!r}") from exc


async def secure(stream: PolledStream, records: Records, address: Address) -> TLSStream:
    """Shake hands on `stream`, which is closed if that fails. Raises `ConnectError`."""
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
    """Whether `exc` is an alert by which a server refuses a client."""
    return alert_of(exc) in _REFUSALS


def connect_error(address: str, exc: BaseException) -> ConnectError:
    """What to tell of a handshake with `address` that `exc` has ended."""
    alert = alert_of(exc)
    if alert in ("certificate_required", "no_certificate"):
        return ConnectError(f"cert is missing: {address} requires a client certificate", options=("cert",))
    if alert == "handshake_failure":
        # TLS 1.2 has no alert of its own for a certificate that is missing.
        return ConnectError(
            f"cannot connect to {address}: it refuses the handshake (no cipher in common, or it requires a client "
            "certificate)"
        )
    if why := _REFUSALS.get(alert or ""):
        return ConnectError(f"cert is refused by {address}: {why} (alert {alert})", options=("cert",))

    hint = _VERIFY_HINT if isinstance(exc, ssl.SSLCertVerificationError) else ""
    return ConnectError(f"cannot connect to {address}: {explain(exc)}{hint}")
