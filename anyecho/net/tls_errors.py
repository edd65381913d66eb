"""What goes wrong in TLS, by name, and in words that a user understands."""

from __future__ import annotations

__all__ = ("TLSError", "TLSTruncated", "explain")

import re
import ssl

#: What OpenSSL raises when a peer, or its certificate, is not what it should be. An `OSError`.
TLSError = ssl.SSLError
#: The kernel says that the peer's data has ended, and the peer had not.
TLSTruncated = ssl.SSLEOFError

_CLEARER = {
    "PEM lib": "it holds nothing of the kind in PEM format, or the password is wrong",
    "no certificate or crl found": "it holds no certificate in PEM format",
    "wrong version number": "the peer does not speak TLS",
}


def explain(exc: BaseException) -> str:
    """What OpenSSL means, without its brackets, codes and source lines."""
    if not isinstance(exc, ssl.SSLError):
        return str(getattr(exc, "strerror", None) or exc)

    text = re.sub(r"^\[[^]]*\] | \(_ssl\.c:\d+\)$", "", str(exc))
    return _CLEARER.get(text, text)
