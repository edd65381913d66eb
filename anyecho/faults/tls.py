"""Faults of TLS: a handshake that stalls, an end without close_notify, certificates that a client must refuse."""

from __future__ import annotations

__all__ = (
    "ExpiredCertificate",
    "NoCloseNotify",
    "SelfSignedCertificate",
    "StalledHandshake",
    "TLSFault",
    "WrongNameCertificate",
)

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from anyio import sleep, sleep_forever
from anyio.abc import ByteStream, TaskGroup
from anyio.lowlevel import checkpoint

from anyecho.faults.fault import Fault
from anyecho.net.abrupt import cut
from anyecho.net.tls.generated import Flaw
from anyecho.options import documented, option
from anyecho.streams import Passthrough
from anyecho.units import Seconds


@dataclass(frozen=True, kw_only=True)
class TLSFault(Fault):
    """A fault of connections over TLS. All but `NoCloseNotify` are for servers of anyecho only."""

    carriers: ClassVar[tuple[str, ...]] = ("tls",)


@documented
@dataclass(frozen=True, kw_only=True)
class StalledHandshake(TLSFault):
    """The server accepts, and does not answer the ClientHello. The handshake timeout of the server still acts."""

    name: ClassVar[str] = "stalled_handshake"

    seconds: Seconds | None = option(None, "How long; off: for ever.")

    async def before_handshake(self) -> None:
        await (sleep_forever() if self.seconds is None else sleep(self.seconds))


@documented
@dataclass(frozen=True, kw_only=True)
class NoCloseNotify(TLSFault):
    """The connection ends with a FIN without close_notify, as if it were truncated."""

    name: ClassVar[str] = "no_close_notify"
    omits_close_notify: ClassVar[bool] = True

    def wrap(self, stream: ByteStream, random: Random, tasks: TaskGroup | None = None) -> ByteStream:
        return _Unannounced(stream)


class _Unannounced(Passthrough):
    async def send_eof(self) -> None:
        await checkpoint()  # TLS has no half-close but a close_notify

    async def aclose(self) -> None:
        await cut(self.stream)


@documented
@dataclass(frozen=True, kw_only=True)
class ExpiredCertificate(TLSFault):
    """The certificate has expired. Needs the generated CA, which signs it: `ssl_self_signed`."""

    name: ClassVar[str] = "expired_certificate"
    flaw: ClassVar[Flaw | None] = "expired"


@documented
@dataclass(frozen=True, kw_only=True)
class WrongNameCertificate(TLSFault):
    """The certificate is for another host. Needs the generated CA, which signs it: `ssl_self_signed`."""

    name: ClassVar[str] = "wrong_name_certificate"
    flaw: ClassVar[Flaw | None] = "wrong_name"


@documented
@dataclass(frozen=True, kw_only=True)
class SelfSignedCertificate(TLSFault):
    """The certificate is signed by itself, and by no CA that a client trusts."""

    name: ClassVar[str] = "self_signed_certificate"
    flaw: ClassVar[Flaw | None] = "self_signed"
