"""The parts of an address, as of a URI (RFC 3986): the host and port, and the settings of one listener in a query.

A host is a name, an IPv4 or an IPv6 address with a zone id. Settings are written ``mode=660&proxy=v2``.
"""

from __future__ import annotations

__all__ = ("check_host", "format_authority", "format_settings", "parse_authority", "parse_settings")

import re
from ipaddress import IPv6Address
from urllib.parse import quote, unquote

from anyecho.errors import AddressError

_HOST_MAX = 253  # RFC 1035, section 2.3.4, as text


def check_host(host: str) -> None:
    if len(host) > _HOST_MAX:
        raise AddressError(f"the host has {len(host)} characters; a name can have {_HOST_MAX}")
    if ":" not in host:
        if not host.isprintable() or re.search(r"[\s/?#@\[\]\\%]", host):
            raise AddressError(f"{host!r} is not a host name")
        return

    address, percent, zone = host.partition("%")
    try:
        IPv6Address(address)
    except ValueError:
        raise AddressError(f"{address!r} is not an IPv6 address") from None
    if percent and (not zone or not zone.isprintable() or re.search(r"[\s/\]%]", zone)):
        raise AddressError(f"{zone!r} is not a zone id, like eth0")


def format_authority(host: str, port: int) -> str:
    if ":" not in host:
        return f"{quote(host, safe='')}:{port}"

    address, percent, zone = host.partition("%")
    return f"[{address}{percent and '%25'}{quote(zone, safe='')}]:{port}"


def parse_authority(text: str, scheme: str) -> tuple[str, int]:
    """Return the host and the port of ``host:port``. Raises `AddressError`, with `scheme` in its text."""
    hint = f"{scheme}://host:port"
    if text.startswith("["):
        inside, bracket, tail = text[1:].partition("]")
        if not bracket:
            raise AddressError("the bracket of the IPv6 address is not closed")
        if ":" not in inside:
            raise AddressError(f"{inside!r} in brackets is not an IPv6 address")
        host, colon, port = _parse_zone(inside), tail[:1], tail[1:]
    else:
        host, colon, port = text.rpartition(":")
        if ":" in host:
            raise AddressError(f"an IPv6 address goes in brackets: {scheme}://[::1]:port")
        host = unquote(host, errors="strict")

    if colon != ":" or not port:
        raise AddressError(f"the port is missing: {hint}")
    if not re.fullmatch("[0-9]+", port, re.A):
        raise AddressError(f"the port {port!r} is not a number: {hint}")

    return host, int(port[-4000:])  # more digits than int() takes are out of range all the same


def format_settings(**settings: str | None) -> str:
    """Return the query with its question mark; without the settings that are None."""
    parts = [f"{name}={value}" for name, value in settings.items() if value is not None]
    return f"?{'&'.join(parts)}" if parts else ""


def parse_settings(query: str) -> dict[str, str]:
    """Return the settings of `query`, decoded. Raises `AddressError`, or `UnicodeError` if they are not UTF-8."""
    settings: dict[str, str] = {}
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        if not name or not equals:
            raise AddressError(f"the setting {part!r} is not name=value")
        if name in settings:
            raise AddressError(f"the setting {name!r} is given twice")
        settings[name] = unquote(value, errors="strict")

    return settings


def _parse_zone(text: str) -> str:
    address, percent, zone = text.partition("%")
    # RFC 6874 writes the % of a zone as %25; a bare % is copied from ip(8).
    return address + percent + unquote(zone.removeprefix("25"), errors="strict")
