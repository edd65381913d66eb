"""The settings of one listener, in the query of its address: ``mode=660&proxy=v2``."""

from __future__ import annotations

__all__ = ("format_settings", "parse_settings")

from urllib.parse import unquote

from anyecho.errors import AddressError


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
