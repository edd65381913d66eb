"""What goes wrong in TLS, by name, and in words that a user understands."""

from __future__ import annotations

__all__ = ("TLSError", "TLSTruncated", "alert_of", "explain")

import re
import ssl

#: What OpenSSL raises when a peer, or its certificate, is not what it should be. An `OSError`.
TLSError = ssl.SSLError
#: The kernel says that the peer's data has ended, and the peer had not.
TLSTruncated = ssl.SSLEOFError

_REWORDED = {
    "PEM lib": "it holds nothing of the kind in PEM format, or the password is wrong",
    "no certificate or crl found": "it holds no certificate in PEM format",
    "wrong version number": "the peer does not speak TLS",
}
#: OpenSSL's names of alerts: some of an old version, one without the word.
_ALERT = re.compile(r"\[SSL: (?:SSLV3|TLSV1|TLSV13)_(?:ALERT_)?([A-Z_]+)\]")


def alert_of(exc: BaseException) -> str | None:
    """The alert that `exc` says the peer has sent, by its name in RFC 8446, section 6; None if it says no such."""
    # Not exc.reason, which a copy of an exception does not have.
    match = _ALERT.match(str(exc)) if isinstance(exc, ssl.SSLError) else None
    return match[1].lower() if match else None


def explain(exc: BaseException) -> str:
    """What OpenSSL means, without its brackets, codes and source lines."""
    if not isinstance(exc, ssl.SSLError):
        return str(getattr(exc, "strerror", None) or exc)

    if alert := alert_of(exc):
        return f"the peer sent the alert {alert}"

    text = re.sub(r"^\[[^]]*\] | \(_ssl\.c:\d+\)$", "", str(exc))
    return _REWORDED.get(text, text)
