"""From options to TLS contexts: whose certificate is shown, and whose is believed.

What cannot be used is a `CertificateError`, one line, before anybody is connected to. TLS 1.2 is the least that is
spoken, and nobody renegotiates.
"""

from __future__ import annotations

__all__ = ("Certificates", "TLSClientOptions", "TLSServerOptions", "client_context")

import socket
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from anyecho.address import Address, TCPAddress
from anyecho.errors import CertificateError, UsageError
from anyecho.net.tls_errors import explain

_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


@dataclass(frozen=True, kw_only=True)
class TLSServerOptions:
    """Who a server is, and of which clients it wants a certificate."""

    ssl_certfile: Path | None = field(
        default=None, metadata={"help": "The server's certificate, and those up to its CA's (PEM)."}
    )
    ssl_keyfile: Path | None = field(
        default=None, metadata={"help": "The certificate's key, unless it is in the same file (PEM)."}
    )
    ssl_keyfile_password_file: Path | None = field(
        default=None, metadata={"help": "A file whose first line is the password of the key."}
    )
    ssl_ca_certs: Path | None = field(
        default=None, metadata={"help": "The CAs whose certificates clients may show (PEM)."}
    )
    ssl_cert_reqs: Literal["none", "optional", "required"] = field(
        default="none", metadata={"help": "Whether clients have to show a certificate."}
    )
    ssl_alpn: tuple[str, ...] = field(
        default=(),
        metadata={"help": "A protocol to agree on with clients that offer it; repeatable.", "negative": ()},
    )
    ssl_self_signed: bool = field(
        default=False,
        metadata={"help": "Make up a CA and a certificate, for this run only (needs trustme).", "negative": ()},
    )

    def __post_init__(self) -> None:
        if self.ssl_self_signed and self.ssl_certfile:
            raise UsageError("ssl_self_signed and ssl_certfile exclude each other")
        for name in ("ssl_keyfile", "ssl_keyfile_password_file"):
            if getattr(self, name) and not self.ssl_certfile:
                raise UsageError(f"{name} needs ssl_certfile")
        # A CA that nobody is held against would look like safety.
        if (self.ssl_cert_reqs == "none") != (self.ssl_ca_certs is None):
            raise UsageError("ssl_ca_certs needs ssl_cert_reqs optional or required, and they need it")


@dataclass(frozen=True, kw_only=True)
class TLSClientOptions:
    """Which servers a client believes, and who it says it is."""

    cacert: Path | None = field(
        default=None, metadata={"help": "Believe the CAs in this file (PEM) instead of the system's."}
    )
    cert: Path | None = field(default=None, metadata={"help": "The certificate to show to the server (PEM)."})
    key: Path | None = field(
        default=None, metadata={"help": "The certificate's key, unless it is in the same file (PEM)."}
    )
    sni: str | None = field(default=None, metadata={"help": "The name to ask for and verify, instead of the host."})
    alpn: tuple[str, ...] = field(
        default=(), metadata={"help": "A protocol to offer to the server; repeatable.", "negative": ()}
    )
    insecure: bool = field(
        default=False,
        metadata={"help": "Believe any server.", "name": ("--insecure", "-k"), "negative": ()},
    )

    def __post_init__(self) -> None:
        if self.key and not self.cert:
            raise UsageError("key needs cert")


def client_context(options: TLSClientOptions) -> ssl.SSLContext:
    """A context to connect with. Raises `CertificateError`."""
    with _certificate_errors(options.cacert):
        context = ssl.create_default_context(cafile=options.cacert)
    _restrict(context, options.alpn)
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if options.cert:
        with _certificate_errors(options.cert, options.key):
            context.load_cert_chain(options.cert, options.key, password=_no_password)

    return context


class Certificates:
    """What the listeners for `addresses` show to whoever connects. Raises `CertificateError`."""

    def __init__(self, options: TLSServerOptions, addresses: Sequence[Address]) -> None:
        self._options = options
        #: Each handshake takes that of its moment.
        self.context: ssl.SSLContext
        #: The file of the CA that was made up, for clients to believe.
        self.cacert: Path | None = None
        if options.ssl_self_signed:
            self.context = self._made_up(addresses)
        elif options.ssl_certfile:
            self.context = self._loaded(options.ssl_certfile)
        else:
            raise CertificateError(f"cannot listen on {addresses[0]}: it needs ssl_certfile or ssl_self_signed")

    def reload(self) -> None:
        """Read the files again, for handshakes from now on.

        Raises `CertificateError` if they cannot be used; then the certificate stays what it was.
        """
        if self._options.ssl_certfile:
            self.context = self._loaded(self._options.ssl_certfile)

    def close(self) -> None:
        """Remove the file of a CA that was made up."""
        if self.cacert is not None:
            self.cacert.unlink(missing_ok=True)

    def _loaded(self, certfile: Path) -> ssl.SSLContext:
        context = self._new()
        options = self._options
        password = options.ssl_keyfile_password_file
        with _certificate_errors(certfile, options.ssl_keyfile, password):
            context.load_cert_chain(
                certfile, options.ssl_keyfile, password=_first_line(password) if password else _no_password
            )

        return context

    def _made_up(self, addresses: Sequence[Address]) -> ssl.SSLContext:
        try:
            import trustme  # an optional extra
        except ImportError as exc:
            raise CertificateError("trustme is not installed: pip install 'anyecho[trustme]'") from exc

        names = {"localhost", "127.0.0.1", "::1"}
        for address in addresses:
            if isinstance(address, TCPAddress):
                names.add(address.host.partition("%")[0] or socket.gethostname())
        ca = trustme.CA()
        context = self._new()
        try:
            ca.issue_cert(*sorted(names)).configure_cert(context)
            descriptor, path = tempfile.mkstemp(prefix="anyecho-ca-", suffix=".pem")
            self.cacert = Path(path)
            with open(descriptor, "wb") as file:
                file.write(ca.cert_pem.bytes())
        except (OSError, ValueError) as exc:
            self.close()
            raise CertificateError(f"cannot make up a certificate for {', '.join(sorted(names))}: {exc}") from exc

        return context

    def _new(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _restrict(context, self._options.ssl_alpn)
        context.verify_mode = _VERIFY[self._options.ssl_cert_reqs]
        if self._options.ssl_ca_certs:
            with _certificate_errors(self._options.ssl_ca_certs):
                context.load_verify_locations(self._options.ssl_ca_certs)

        return context


def _restrict(context: ssl.SSLContext, alpn: Sequence[str]) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    if alpn:
        try:
            context.set_alpn_protocols(alpn)
        except (ssl.SSLError, UnicodeError) as exc:
            raise UsageError(f"{', '.join(alpn)!r} are no ALPN protocols: 1 to 255 ASCII characters each") from exc


def _first_line(path: Path) -> bytes:
    return path.read_bytes().partition(b"\n")[0].rstrip(b"\r")


def _no_password() -> str:
    # Without it, OpenSSL asks at the terminal, and the event loop waits for the answer.
    raise CertificateError("the key is encrypted, and there is no file with its password")


@contextmanager
def _certificate_errors(*paths: Path | None) -> Iterator[None]:
    what = " or ".join(str(path) for path in paths if path)
    try:
        yield
    except CertificateError as exc:
        raise CertificateError(f"cannot use {what}: {exc}") from exc.__cause__
    except (OSError, ValueError) as exc:
        raise CertificateError(f"cannot use {what}: {explain(exc)}") from exc
