"""Replace attribute names of options in messages by the flag or the environment variable that the user wrote."""

from __future__ import annotations

__all__ = ("PREFIX", "OptionNames")

import re
from collections.abc import Collection, Mapping

#: The prefix of environment variables.
PREFIX = "ANYECHO_"
#: Flags that are not derived from the attribute: for a switch that is on by default, the flag that turns it off.
_FLAGS = {
    "family": "-4 or -6",
    "faults": "--fault",
    "keepalive": "--no-keepalive",
    "tcp_nodelay": "--no-tcp-nodelay",
}


class OptionNames:
    """The names of options as a user writes them.

    `from_environment` holds the options that a variable set, `in_file` those that a file set, with their names.
    """

    def __init__(self, from_environment: Collection[str] = (), in_file: Mapping[str, str] | None = None) -> None:
        self.from_environment = from_environment
        self.in_file = in_file or {}

    def name(self, option: str) -> str:
        """Return ``--ssl-keyfile`` for ``ssl_keyfile``, or ``ANYECHO_SSL_KEYFILE`` if that variable set it."""
        if option in self.from_environment:
            return PREFIX + option.upper()

        if option in self.in_file:
            return self.in_file[option]

        return _FLAGS.get(option, "--" + option.replace("_", "-"))

    def substitute(self, text: str, options: Collection[str]) -> str:
        """Return `text` with the first occurrence of each of `options` replaced by its `name`."""
        remaining = set(options)

        def replace(match: re.Match[str]) -> str:
            if match[0] not in remaining:
                return match[0]
            remaining.remove(match[0])
            return self.name(match[0])

        words = "|".join(filter(str.isidentifier, options))  # ?proxy= of an address stays as it is
        # The delimiters exclude a host or a file of the same name.
        return re.sub(rf"(?<![^\s(])(?:{words})(?![^\s,:;)])", replace, text) if words else text
