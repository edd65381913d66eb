"""TLS options, and the `ssl.SSLContext` made from them for a server or a client.

A file that cannot be used raises `CertificateError`, of one line, before any connection is made. The minimum
version is TLS 1.2, and renegotiation is off.
"""

from __future__ import annotations

__all__ = ("Certificates", "TLSClientOptions", "TLSServerOptions", "client_context")

import os
import socket
import ssl
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anyecho.address import Address, TCPAddress
from anyecho.errors import CertificateError, UsageError
from anyecho.net.names import host_name, is_host_name
from anyecho.net.tls.attributes import keep_sni
from anyecho.net.tls.errors import explain
from anyecho.net.tls.files import certificate_errors, load_chain
from anyecho.net.tls.generated import Flaw, GeneratedAuthority, published
from anyecho.options import FilePath, option, option_group
from anyecho.validation import check_types, given_options

_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


@option_group("TLS")
@dataclass(frozen=True, kw_only=True)
class TLSServerOptions:
    """The certificate of a server, and whether it requests certificates from clients.

    `context` is a server-side context of the caller's own, and replaces all other options here. Its certificates,
    ciphers, client certificates, ALPN and callbacks are used unchanged. It must not allow versions older than
    TLS 1.2, and ``OP_NO_RENEGOTIATION`` is added to its options. `Certificates.reload` does not change it. The
    caller may call its ``load_cert_chain`` again at any time, for later handshakes.

    Raises:
        UsageError: a value has the wrong type, an option lacks another one, or two exclude each other.
    """

    ssl_certfile: FilePath | None = option(None, "Server certificate and its chain (PEM).", group="Options")
    ssl_keyfile: FilePath | None = option(
        None, "The certificate's key, unless it is in the same file (PEM).", group="Options"
    )
    ssl_keyfile_password_file: FilePath | None = option(
        None, "File with the password of the key on its first line."
    )
    ssl_ca_certs: FilePath | None = option(None, "CAs that client certificates are verified against (PEM).")
    ssl_cert_reqs: Literal["none", "optional", "required"] = option(
        "none", "Whether clients may or must present a certificate."
    )
    ssl_alpn: tuple[str, ...] = option((), "ALPN protocol that the server supports; repeatable.", negative=())
    ssl_self_signed: bool = option(
        False, "Generate a CA and a certificate for this run only (needs trustme).", negative=()
    )
    authority: GeneratedAuthority | None = option(
        None, "The CA for `ssl_self_signed`, in place of a new one.", flag=False
    )
    context: ssl.SSLContext | None = option(
        None, "A context of the caller's own, in place of the files.", flag=False
    )

    def __post_init__(self) -> None:
        _check(self, ("ssl_certfile", "ssl_keyfile", "ssl_keyfile_password_file", "ssl_ca_certs"))
        if self.ssl_self_signed and self.ssl_certfile:
            both = ("ssl_self_signed", "ssl_certfile")
            raise UsageError("ssl_self_signed and ssl_certfile exclude each other", options=both)
        if self.authority and not self.ssl_self_signed:
            raise UsageError("authority needs ssl_self_signed", options=("authority", "ssl_self_signed"))
        for name in ("ssl_keyfile", "ssl_keyfile_password_file"):
            if getattr(self, name) and not self.ssl_certfile:
                raise UsageError(f"{name} needs ssl_certfile", options=(name, "ssl_certfile"))
        if self.ssl_ca_certs and self.ssl_cert_reqs == "none":
            # Such a CA would verify no client. An error, because the user expects that it does.
            text = "ssl_ca_certs needs ssl_cert_reqs optional or required"
            raise UsageError(text, options=("ssl_ca_certs", "ssl_cert_reqs"))
        if self.ssl_cert_reqs != "none" and not self.ssl_ca_certs:
            text = f"ssl_cert_reqs {self.ssl_cert_reqs} needs ssl_ca_certs"
            raise UsageError(text, options=("ssl_cert_reqs", "ssl_ca_certs"))


@option_group("TLS")
@dataclass(frozen=True, kw_only=True)
class TLSClientOptions:
    """How a client verifies the server, and the client's certificate.

    `context` is a client-side context of the caller's own, and replaces all other options here but `sni`. It is
    used unchanged, and decides whether the server is verified. It must not allow versions older than TLS 1.2, and
    ``OP_NO_RENEGOTIATION`` is added to its options.

    Raises:
        UsageError: a value has the wrong type, an option lacks another one, or two exclude each other.
    """

    cacert: FilePath | None = option(None, "Trust the CAs in this file (PEM) instead of the system's.")
    cert: FilePath | None = option(None, "Client certificate to present to the server (PEM).")
    key: FilePath | None = option(None, "The certificate's key, unless it is in the same file (PEM).")
    sni: str | None = option(None, "Server name to request (SNI) and verify, instead of the host.")
    alpn: tuple[str, ...] = option((), "ALPN protocol to offer to the server; repeatable.", negative=())
    insecure: bool = option(
        False, "Do not verify the server's certificate.", name=("--insecure", "-k"), negative=()
    )
    context: ssl.SSLContext | None = option(
        None, "A context of the caller's own, in place of the files.", flag=False
    )

    def __post_init__(self) -> None:
        _check(self, ("cacert", "cert", "key"))
        if self.key and not self.cert:
            raise UsageError("key needs cert", options=("key", "cert"))
        if self.sni is not None and not is_host_name(self.sni):
            raise UsageError(f"sni is not a host name: {self.sni!r}", options=("sni",))


def _check(options: TLSServerOptions | TLSClientOptions, paths: Collection[str]) -> None:
    """Raise `UsageError` for a wrong type, an empty path, or an unsuitable context."""
    check_types(options)
    for name in paths:
        if (path := getattr(options, name)) is not None and not os.fspath(path):
            raise UsageError(f"{name} is empty: it must name a file", options=(name,))
    if options.context is None:
        return

    others = [name for name in given_options(options) if name not in ("context", "sni")]
    if others:
        raise UsageError(f"context and {others[0]} exclude each other", options=("context", others[0]))
    side = "SERVER" if isinstance(options, TLSServerOptions) else "CLIENT"
    if options.context.protocol not in (getattr(ssl, f"PROTOCOL_TLS_{side}"), ssl.PROTOCOL_TLS):
        text = f"context is not for this side: make it with ssl.PROTOCOL_TLS_{side}"
        raise UsageError(text, options=("context",))
    if options.context.minimum_version < ssl.TLSVersion.TLSv1_2:
        text = "context allows versions older than TLS 1.2: set its minimum_version to ssl.TLSVersion.TLSv1_2"
        raise UsageError(text, options=("context",))


def client_context(options: TLSClientOptions) -> ssl.SSLContext:
    """Return the context of `options`, or else a new one that verifies the server, unless `insecure` is set.

    Raises `CertificateError` if a file of `options` cannot be used, and `UsageError` for an invalid `alpn`.
    """
    if options.context is not None:
        options.context.options |= ssl.OP_NO_RENEGOTIATION
        return options.context

    with certificate_errors(options.cacert):
        context = _default_context(options.cacert)
    _restrict(context, options.alpn)
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if options.cert:
        load_chain(context, options.cert, options.key, key_option="key")

    return context


def _default_context(cafile: FilePath | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=cafile)
    except OSError as exc:
        # create_default_context() opens the key log too. Only an error for that file has a filename.
        if exc.filename is not None and exc.filename == (path := os.environ.get("SSLKEYLOGFILE")):
            text = f"cannot write TLS keys to {path} (set by SSLKEYLOGFILE): {explain(exc)}"
            raise CertificateError(text) from exc
        raise


class Certificates:
    """The context of a server's TLS listeners, from files that can be reloaded.

    A self-signed certificate is valid for the hosts of `addresses`. Raises `CertificateError` for a file that
    cannot be used, and `UsageError` if `options` name no certificate.
    """

    def __init__(self, options: TLSServerOptions, addresses: Sequence[Address]) -> None:
        self._options = options
        #: For new handshakes. `reload` replaces it.
        self.context: ssl.SSLContext
        #: The file of the generated CA, for clients to trust; on Linux, in the memory of this process.
        self.cacert: Path | None = None
        self._opened = ExitStack()
        #: The generated CA, if there is one, the names in its certificate, and the certificates with a flaw.
        self._authority: GeneratedAuthority | None = None
        self._names: set[str] = set()
        self._flawed: dict[Flaw, ssl.SSLContext] = {}
        if options.context is not None:
            self.context = options.context
            self.context.options |= ssl.OP_NO_RENEGOTIATION
        elif options.ssl_self_signed:
            self.context = self._self_signed(addresses)
        elif options.ssl_certfile:
            self.context = self._load(options.ssl_certfile)
        else:
            text = f"{addresses[0]} needs a certificate: give ssl_certfile or ssl_self_signed"
            raise UsageError(text, options=("ssl_certfile", "ssl_self_signed"))

    def reload(self) -> None:
        """Read the files again, for new handshakes.

        Raises:
            CertificateError: they cannot be used; the old certificate stays in use.
        """
        if self._options.ssl_certfile:
            self.context = self._load(self._options.ssl_certfile)

    def flawed(self, flaw: Flaw) -> ssl.SSLContext:
        """Return the context with a certificate that has this flaw; it is generated at the first call.

        Raises `UsageError` if the CA that has to sign it is not generated.
        """
        if flaw not in self._flawed:
            if flaw != "self_signed" and self._authority is None:
                text = f"a certificate with the flaw {flaw} needs ssl_self_signed: the generated CA signs it"
                raise UsageError(text, options=("ssl_self_signed",))
            # A self-signed one must not be the CA that clients trust.
            authority = None if flaw == "self_signed" else self._authority
            self._flawed[flaw] = context = self._new_context()
            (authority or GeneratedAuthority()).configure(context, self._names, flaw)

        return self._flawed[flaw]

    def shared_authority(self) -> GeneratedAuthority | None:
        """Return the generated CA with its key, for the same server in other processes; None if there is none."""
        if self._authority is not None:
            self._authority.names = frozenset(self._names)

        return self._authority

    def close(self) -> None:
        """Remove the file of a generated CA, unless this is a forked child of the process that made it."""
        self._opened.close()

    def _load(self, certfile: FilePath) -> ssl.SSLContext:
        context = self._new_context()
        load_chain(
            context,
            certfile,
            self._options.ssl_keyfile,
            self._options.ssl_keyfile_password_file,
            key_option="ssl_keyfile",
            password_option="ssl_keyfile_password_file",
        )
        return context

    def _self_signed(self, addresses: Sequence[Address]) -> ssl.SSLContext:
        self._authority = authority = self._options.authority or GeneratedAuthority()
        names = {"localhost", "127.0.0.1", "::1"}
        for address in addresses:
            if isinstance(address, TCPAddress):
                names.add(host_name(address.host.partition("%")[0]) or socket.gethostname())
        names |= authority.names
        self._names = names
        context = self._new_context()
        try:
            authority.configure(context, names)
            if not authority.is_published:
                self.cacert = self._opened.enter_context(published(authority.pem))
        except (OSError, ValueError) as exc:
            raise CertificateError(f"cannot generate a certificate for {', '.join(sorted(names))}: {exc}") from exc

        return context

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        keep_sni(context)
        _restrict(context, self._options.ssl_alpn)
        context.verify_mode = _VERIFY[self._options.ssl_cert_reqs]
        if self._options.ssl_ca_certs:
            with certificate_errors(self._options.ssl_ca_certs):
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
