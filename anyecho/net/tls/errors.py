"""TLS errors: their types, the alert that the peer sent, and a message for users."""

from __future__ import annotations

__all__ = ("TLSError", "TLSTruncated", "alert_of", "error_name", "explain")

import re
import ssl

#: Raised by OpenSSL for a protocol violation, an alert of the peer, or an invalid certificate. An `OSError`.
TLSError = ssl.SSLError
#: EOF on the connection without a close_notify of the peer.
TLSTruncated = ssl.SSLEOFError

_REWORDED = {
    "PEM lib": "it contains no such item in PEM format, or the password is wrong",
    "no certificate or crl found": "it holds no certificate in PEM format",
    "wrong version number": "the peer does not speak TLS",
}
#: OpenSSL's names of alerts. Some have the prefix of an old version, one lacks the word ALERT.
_ALERT = re.compile(r"\[SSL: (?:SSLV3|TLSV1|TLSV13)_(?:ALERT_)?([A-Z_]+)\]")
_NAME = re.compile(r"\[SSL: ([A-Z0-9_]+)\]")


def alert_of(exc: BaseException) -> str | None:
    """The name (RFC 8446, section 6) of the alert from the peer that caused `exc`; None if no alert did."""
    # Not exc.reason: copies of an exception lack it.
    match = _ALERT.match(str(exc)) if isinstance(exc, ssl.SSLError) else None
    return match[1].lower() if match else None


def error_name(exc: BaseException) -> str:
    """OpenSSL's name of `exc` in lower case, like ``wrong_version_number``; ``alert_unknown_ca`` for an alert.

    ``other`` if it has none. There are some hundred names, whatever peers send.
    """
    if alert := alert_of(exc):
        return f"alert_{alert}"

    match = _NAME.match(str(exc))
    return match[1].lower() if match else "other"


def explain(exc: BaseException) -> str:
    """The message of `exc` for a user, without OpenSSL's brackets, codes and source lines."""
    if not isinstance(exc, ssl.SSLError):
        return str(getattr(exc, "strerror", None) or exc)

    if alert := alert_of(exc):
        return f"the peer sent the alert {alert}"

    text = re.sub(r"^\[[^]]*\] | \(_ssl\.c:\d+\)$", "", str(exc))
    return _REWORDED.get(text, text)
