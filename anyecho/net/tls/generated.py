"""A CA made for one run, its file for clients, and the certificates that it signs: good ones, and ones with a flaw.

It needs trustme, an optional extra.
"""

from __future__ import annotations

__all__ = ("Flaw", "GeneratedAuthority", "published")

import os
import ssl
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from anyecho.errors import CertificateError

Flaw: TypeAlias = Literal["expired", "self_signed", "wrong_name"]

#: The CA itself is valid from 2000.
_LONG_AGO = (datetime(2001, 1, 1, tzinfo=UTC), datetime(2002, 1, 1, tzinfo=UTC))
#: A name that no host has (RFC 6761).
_WRONG_NAME = "wrong-name.invalid"
#: Descriptors of a process as files, for processes of the same user.
_DESCRIPTORS = Path("/proc/self/fd")


class GeneratedAuthority:
    """A CA with a key that stays in memory. Raises `CertificateError` if trustme is not installed."""

    def __init__(self) -> None:
        try:
            import trustme  # an optional extra
        except ImportError as exc:
            raise CertificateError("trustme is not installed: pip install 'anyecho[trustme]'") from exc

        self._trustme = trustme
        self._ca = trustme.CA()
        #: The file that `save` has written.
        self.cacert: Path | None = None
        #: Names in each certificate of a server, besides those of its addresses.
        self.names: frozenset[str] = frozenset()
        #: Whether another process has told clients of the CA, so that a server need not.
        self.is_published = False

    @property
    def pem(self) -> bytes:
        """The certificate of the CA, for clients to trust."""
        return self._ca.cert_pem.bytes()

    def to_json(self) -> dict[str, Any]:
        """Return the CA, with its key, for `from_json`."""
        key = self._ca.private_key_pem.bytes().decode()
        return {"certificate": self.pem.decode(), "key": key, "names": sorted(self.names)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GeneratedAuthority:
        """Return the CA of another process. Raises `CertificateError`."""
        authority = cls()
        authority._ca = authority._trustme.CA.from_pem(value["certificate"].encode(), value["key"].encode())
        authority.names = frozenset(value["names"])
        authority.is_published = True
        return authority

    def save(self, path: Path) -> None:
        """Write the certificate of the CA to `path`, for clients that need a file to trust."""
        path.write_bytes(self.pem)
        self.cacert = path

    def client_context(self) -> ssl.SSLContext:
        """Return a new context for clients. It trusts only this CA, and verifies the name of the server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._ca.configure_trust(context)
        return context

    def configure(self, context: ssl.SSLContext, names: Collection[str], flaw: Flaw | None = None) -> None:
        """Load a new certificate for `names` into `context`. Of a `flaw`, only that is wrong."""
        ca = self._ca
        if flaw == "self_signed":
            with self._trustme.Blob(ca.private_key_pem.bytes() + ca.cert_pem.bytes()).tempfile() as path:
                context.load_cert_chain(path)
        elif flaw == "expired":
            not_before, not_after = _LONG_AGO
            certificate = ca.issue_cert(*sorted(names), not_before=not_before, not_after=not_after)
            certificate.configure_cert(context)
        else:
            wanted = [_WRONG_NAME] if flaw == "wrong_name" else sorted(names)
            ca.issue_cert(*wanted).configure_cert(context)


@contextmanager
def published(pem: bytes) -> Iterator[Path]:
    """Yield a file with the certificate `pem`, for clients, until the block or the process ends. Raises `OSError`.

    It is in memory where the system has such files. A forked child of the process that made it leaves it alone.
    """
    owner = os.getpid()
    is_temporary = not (hasattr(os, "memfd_create") and _DESCRIPTORS.is_dir())
    if is_temporary:
        descriptor, name = tempfile.mkstemp(prefix="anyecho-ca-", suffix=".pem")
    else:
        descriptor = os.memfd_create("anyecho-ca-.pem")
        name = f"/proc/{owner}/fd/{descriptor}"
    with open(descriptor, "wb") as file:
        try:
            file.write(pem)
            file.flush()
            yield Path(name)
        finally:
            if is_temporary and os.getpid() == owner:
                Path(name).unlink(missing_ok=True)
