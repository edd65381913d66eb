"""Load a certificate and its key from PEM files into a context. An error names the file and what is wrong with it.

OpenSSL reports most faults of both files with the same message. The files are therefore examined after a failure,
never before: a pipe (``<(command)`` of a shell) can be read only once.
"""

from __future__ import annotations

__all__ = ("certificate_errors", "load_chain")

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from anyecho.errors import CertificateError
from anyecho.net.tls.errors import explain
from anyecho.options import FilePath

#: OpenSSL's message for a file without the item it needs, whatever the cause.
_NOT_PEM = "PEM lib"


class _PasswordMissing(Exception):
    """OpenSSL needs a password for the key, and none is configured."""


def load_chain(
    context: ssl.SSLContext,
    cert: FilePath,
    key: FilePath | None,
    password_file: FilePath | None = None,
    *,
    key_option: str,
    password_option: str | None = None,
) -> None:
    """Load `cert`, and its key from `key` or else from `cert`, into `context`.

    Raises `CertificateError`, which names the option to set: `key_option`, or `password_option` if there is one.
    """
    password: Callable[[], str] | bytes = _no_password
    if password_file is not None:
        with certificate_errors(password_file), open(password_file, "rb") as file:
            password = file.readline().rstrip(b"\r\n")
    try:
        context.load_cert_chain(cert, key, password=password)
    except _PasswordMissing:
        secret = os.fspath(key or cert)
        if password_option is None:
            raise _cannot_use(secret, "the key is encrypted (openssl pkey decrypts it)") from None
        text = f"{password_option} is missing: the key in {secret} is encrypted"
        raise CertificateError(text, options=(password_option,)) from None
    except (OSError, ValueError) as exc:
        raise _diagnose(exc, cert, key, password_file, key_option) from exc


@contextmanager
def certificate_errors(path: FilePath | None) -> Iterator[None]:
    """Raise the errors of reading `path` in the block as `CertificateError`."""
    try:
        yield
    except (OSError, ValueError) as exc:
        raise _cannot_use(path or "", explain(exc)) from exc


def _cannot_use(path: FilePath, why: str) -> CertificateError:
    return CertificateError(f"cannot use {os.fspath(path)}: {why}")


def _no_password() -> str:
    # Without a callback, OpenSSL prompts on the terminal, which blocks the event loop.
    raise _PasswordMissing


def _diagnose(
    exc: Exception, cert: FilePath, key: FilePath | None, password_file: FilePath | None, key_option: str
) -> CertificateError:
    for path in (cert, key or cert):
        with certificate_errors(path), open(path, "rb", opener=_open_nonblocking):
            pass

    if key is None and Path(cert).is_fifo():
        text = f"{key_option} is missing: {os.fspath(cert)} is a pipe, which is read once, for the certificate"
        return CertificateError(text, options=(key_option,))

    secret = os.fspath(key or cert)
    if isinstance(exc, ssl.SSLError) and exc.reason == "KEY_VALUES_MISMATCH":
        return _cannot_use(secret, f"it is not the key of {os.fspath(cert)} (key values mismatch)")
    if not isinstance(exc, ssl.SSLError) or not all(map(os.path.isfile, (cert, secret))):
        names = " or ".join(dict.fromkeys([os.fspath(cert), secret]))
        return _cannot_use(names, explain(exc))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cert)
    except (OSError, ValueError):
        return _cannot_use(cert, "it holds no certificate in PEM format")

    return _diagnose_key(exc, secret, key is None, password_file, key_option)


def _diagnose_key(
    exc: ssl.SSLError, path: str, in_certfile: bool, password_file: FilePath | None, key_option: str
) -> CertificateError:
    with certificate_errors(path):
        text = Path(path).read_bytes()
    if b"PRIVATE KEY-----" not in text:
        if in_certfile:
            message = f"{key_option} is missing: {path} holds no private key in PEM format"
            return CertificateError(message, options=(key_option,))
        return _cannot_use(path, "it holds no private key in PEM format")
    if password_file is not None and b"ENCRYPTED" in text:
        return _cannot_use(path, f"the password in {os.fspath(password_file)} is wrong")
    if _NOT_PEM in str(exc):
        return _cannot_use(path, "its private key is damaged")

    return _cannot_use(path, explain(exc))


def _open_nonblocking(path: str, flags: int) -> int:
    # A pipe that nothing writes to would block.
    return os.open(path, flags | os.O_NONBLOCK)
