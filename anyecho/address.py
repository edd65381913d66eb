"""Parse addresses from text and format them; the round trip is exact.

``tcp://host:port`` (or bare ``host:port``), ``tls://``, ``udp://``, ``unix:/path``, ``unix:@abstract``,
``tls+unix:``, ``fd://3``, ``fd://name``, ``tls+fd://3``. An empty host means every interface, port 0 any free port.
Settings of one listener follow as a query (``unix:/run/echo?mode=660``). Reserved characters are percent-encoded
(RFC 3986), zone ids as in RFC 6874. This module resolves no names and opens no sockets.
"""

from __future__ import annotations

__all__ = (
    "PREFIXES",
    "Address",
    "FDAddress",
    "ProxyMode",
    "StreamAddress",
    "TCPAddress",
    "UDPAddress",
    "UnixAddress",
    "parse_address",
)

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, TypeAlias
from urllib.parse import quote, quote_from_bytes, unquote, unquote_to_bytes

from anyecho.errors import AddressError, quoted
from anyecho.uri import check_host, format_authority, format_settings, parse_authority, parse_settings
from anyecho.validation import check_types

#: sun_path holds 108 bytes (unix(7)). A path ends with a NUL, an abstract name begins with one.
_UNIX_PATH_MAX = 107
#: Names that sd_listen_fds_with_names(3) can pass: printable ASCII without the colon, which separates them.
_DESCRIPTOR_NAME = re.compile("[ -9;-~]{1,255}")
_NUMBER = re.compile("-?[0-9]+")

#: The PROXY header that accepted connections must begin with; ``require`` is either version.
ProxyMode: TypeAlias = Literal["off", "v1", "v2", "require"]
_PROXY_MODES: tuple[ProxyMode, ...] = ("off", "v1", "v2", "require")


@dataclass(frozen=True, kw_only=True)
class StreamAddress:
    """What all addresses of streams have: TLS or not, and the listener's PROXY mode in place of the server's."""

    tls: bool = False
    proxy: ProxyMode | None = None


@dataclass(frozen=True, kw_only=True)
class _HostPort:
    host: str
    port: int

    def __post_init__(self) -> None:
        check_types(self, error=AddressError)
        if not 0 <= self.port <= 65535:
            raise AddressError(f"port {self.port} is not in 0..65535")

        check_host(self.host)


@dataclass(frozen=True, kw_only=True)
class TCPAddress(StreamAddress, _HostPort):
    """A port and a host: a name, an IPv4 or IPv6 address (with ``%zone``), or ``""`` for every interface.

    `proxy` overrides the server's PROXY mode for this listener.

    Raises:
        AddressError: a value has the wrong type or is out of range.
    """

    def __str__(self) -> str:
        authority = format_authority(self.host, self.port)
        return f"{'tls' if self.tls else 'tcp'}://{authority}{format_settings(proxy=self.proxy)}"


@dataclass(frozen=True, kw_only=True)
class UDPAddress(_HostPort):
    """As `TCPAddress`, for datagrams; without TLS and PROXY headers.

    Raises:
        AddressError: a value has the wrong type or is out of range.
    """

    tls: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"udp://{format_authority(self.host, self.port)}"


@dataclass(frozen=True, kw_only=True)
class UnixAddress(StreamAddress):
    """A path, or a NUL and an abstract name; undecodable bytes are surrogate-escaped (PEP 383).

    `mode` holds the permissions of a listener's socket file. `proxy` is as for TCP.

    Raises:
        AddressError: a value has the wrong type, is out of range, or excludes another value.
    """

    path: str
    mode: int | None = None

    def __post_init__(self) -> None:
        check_types(self, error=AddressError)
        name = self.path.removeprefix("\0")
        if not name:
            raise AddressError("the path is missing: unix:/path or unix:@abstract")
        if "\0" in self.path and not self.is_abstract:
            raise AddressError("a path cannot hold a NUL")
        try:
            size = len(os.fsencode(name))
        except UnicodeEncodeError:
            raise AddressError("the path cannot be encoded") from None
        if size > _UNIX_PATH_MAX:
            raise AddressError(f"the path has {size} bytes; a Unix socket's can have {_UNIX_PATH_MAX}")
        if self.is_abstract and self.mode is not None:
            raise AddressError("an abstract name has no mode: it is no file")
        if self.mode is not None and not 0 <= self.mode <= 0o777:
            raise AddressError(f"mode {self.mode:o} is not in 0..777 (octal)")

    @property
    def is_abstract(self) -> bool:
        return self.path.startswith("\0")

    def __str__(self) -> str:
        prefix, name = ("@", self.path[1:]) if self.is_abstract else ("", self.path)
        # A leading "@" would mean an abstract name, a leading "//" an authority. A "," separates the addresses in
        # an environment variable.
        safe = "/:@+=~" if not name.startswith("@") else "/:+=~"
        text = quote_from_bytes(os.fsencode(name), safe=safe)
        if text.startswith("//"):
            text = "/%2F" + text[2:]

        query = format_settings(mode=None if self.mode is None else f"{self.mode:o}", proxy=self.proxy)
        return f"{'tls+' if self.tls else ''}unix:{prefix}{text}{query}"


@dataclass(frozen=True, kw_only=True)
class FDAddress(StreamAddress):
    """An inherited descriptor of a listening stream socket or a bound datagram socket.

    `fd` is its number, or the name that a service manager gave it (FileDescriptorName= of systemd). Several
    descriptors may have one name. `proxy` is as for TCP.

    Raises:
        AddressError: a value has the wrong type or is out of range.
    """

    fd: int | str

    def __post_init__(self) -> None:
        check_types(self, error=AddressError)
        if isinstance(self.fd, str):
            if not _DESCRIPTOR_NAME.fullmatch(self.fd) or _NUMBER.fullmatch(self.fd):
                raise AddressError(f"{self.fd!r} is not the name of a descriptor")
        elif not 0 <= self.fd < 2**31:
            raise AddressError(f"descriptor {self.fd} is not in 0..{2**31 - 1}")

    def __str__(self) -> str:
        name = quote(str(self.fd), safe="")
        return f"{'tls+' if self.tls else ''}fd://{name}{format_settings(proxy=self.proxy)}"


Address: TypeAlias = StreamAddress | UDPAddress


def parse_address(text: str | Address) -> Address:
    """Parse `text`; return an `Address` unchanged. No name is looked up.

    Raises:
        AddressError: `text` is not an address; the error is a line that names what is wrong.
    """
    if isinstance(text, Address):
        return text
    if not isinstance(text, str):
        raise AddressError(f"an address is a str or an Address, not {quoted(text)}")
    try:
        return _parse(text)
    except AddressError as exc:
        raise AddressError(f"bad address {text!r}: {exc}") from None
    except UnicodeError:
        raise AddressError(f"bad address {text!r}: the percent-encoded bytes are not UTF-8") from None


def _parse(text: str) -> Address:
    prefix = next((each for each in PREFIXES if text[: len(each)].lower() == each), "")
    if not prefix:
        _check_no_scheme(text)

    rest, query_mark, query = text[len(prefix) :].partition("?")
    settings = parse_settings(query) if query_mark else {}
    address = PREFIXES[prefix or "tcp://"](rest, settings)
    if settings:
        known = ", ".join(name for name in ("mode", "proxy") if hasattr(address, name)) or "none"
        raise AddressError(f"no setting {next(iter(settings))!r} here (known: {known})")

    return address


def _parse_tcp(text: str, settings: dict[str, str], *, tls: bool = False) -> TCPAddress:
    proxy = _parse_proxy(settings)
    host, port = parse_authority(text, "tls" if tls else "tcp")
    return TCPAddress(host=host, port=port, tls=tls, proxy=proxy)


def _parse_udp(text: str, settings: dict[str, str]) -> UDPAddress:
    host, port = parse_authority(text, "udp")
    return UDPAddress(host=host, port=port)


def _parse_unix(text: str, settings: dict[str, str], *, tls: bool = False) -> UnixAddress:
    proxy, mode = _parse_proxy(settings), _parse_mode(settings.pop("mode", None))
    return UnixAddress(path=_parse_path(text), tls=tls, mode=mode, proxy=proxy)


def _parse_fd(text: str, settings: dict[str, str], *, tls: bool = False) -> FDAddress:
    return FDAddress(proxy=_parse_proxy(settings), fd=_parse_descriptor(text), tls=tls)


#: How the text after each prefix, without its query, becomes an address. The parser removes the settings of the
#: query that it knows. A carrier adds its prefix.
PREFIXES: dict[str, Callable[[str, dict[str, str]], Address]] = {
    "tcp://": _parse_tcp,
    "tls://": partial(_parse_tcp, tls=True),
    "udp://": _parse_udp,
    "unix:": _parse_unix,
    "fd://": _parse_fd,
    "tls+unix:": partial(_parse_unix, tls=True),
    "tls+fd://": partial(_parse_fd, tls=True),
}


def _check_no_scheme(text: str) -> None:
    """Raise `AddressError` if `text`, which has no scheme, looks like something else than ``host:port``."""
    if "://" in text:
        *schemes, last = (prefix.rstrip(":/") for prefix in PREFIXES)
        raise AddressError(f"no such scheme; there are {', '.join(schemes)} and {last}")
    if scheme := re.match(r"(tcp|tls|udp|fd|tls\+fd):(.*:.*)", text, re.I):
        raise AddressError(f"the // is missing: {_printable(f'{scheme[1]}://{scheme[2]}')}")
    if re.match(r"[/~@]|\.\.?/|[^:\[]+/", text):
        raise AddressError(f"a Unix socket is written {_printable(f'unix:{text}')}")
    if re.fullmatch("[0-9]{1,5}", text, re.A):
        raise AddressError(f"a port needs its host: localhost:{text}, or :{text} for every interface")
    if "," in text:
        raise AddressError("a comma does not separate addresses: give each one on its own")


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)


def _parse_mode(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch("[0-7]{1,4}", text, re.A):
        raise AddressError(f"mode {text!r} is not octal, like 660")

    return int(text, 8)


def _parse_proxy(settings: dict[str, str]) -> ProxyMode | None:
    """Remove ``proxy`` from `settings` and return it."""
    text = settings.pop("proxy", None)
    if text is None or text in _PROXY_MODES:
        return text

    raise AddressError(f"proxy is {', '.join(_PROXY_MODES)}, not {text!r}")


def _parse_path(text: str) -> str:
    if text.startswith("//") and not text.startswith("///"):
        raise AddressError("a Unix path has no host: write unix:/path")

    # unix:///path means unix:/path in other programs.
    name = text[2:] if text.startswith("//") else text
    abstract = name.startswith("@")
    path = os.fsdecode(unquote_to_bytes(os.fsencode(name[1:] if abstract else name)))
    if "\0" in path and not abstract:
        raise AddressError("a path cannot hold a NUL")

    return "\0" + path if abstract else path


def _parse_descriptor(text: str) -> int | str:
    if not text:
        raise AddressError("the descriptor is missing: fd://3")

    return int(text[:20]) if _NUMBER.fullmatch(text) else unquote(text, errors="strict")
