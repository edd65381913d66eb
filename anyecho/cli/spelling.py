"""How a user writes an option: the flag, or the environment variable that set it, in place of the attribute."""

from __future__ import annotations

__all__ = ("PREFIX", "Spelling")

import re
from collections.abc import Collection

#: What the name of an environment variable begins with.
PREFIX = "ANYECHO_"
#: Not after the attribute; of a switch that is on by default, the flag that is given.
_FLAGS = {"family": "-4 or -6", "keepalive": "--no-keepalive", "tcp_nodelay": "--no-tcp-nodelay"}


class Spelling:
    """Spells options as they were given. `from_environment` are the options that a variable has set."""

    def __init__(self, from_environment: Collection[str] = ()) -> None:
        self.from_environment = from_environment

    def name(self, option: str) -> str:
        """``--ssl-keyfile`` for ``ssl_keyfile``, or ``ANYECHO_SSL_KEYFILE`` if that has set it."""
        if option in self.from_environment:
            return PREFIX + option.upper()

        return _FLAGS.get(option, "--" + option.replace("_", "-"))

    def text(self, text: str, options: Collection[str]) -> str:
        """`text` of the library with `options`, each where it stands first, as a user writes them."""
        left = set(options)

        def spell(match: re.Match[str]) -> str:
            if match[0] not in left:
                return match[0]
            left.remove(match[0])
            return self.name(match[0])

        words = "|".join(filter(str.isidentifier, options))  # ?proxy= of an address is written as it is
        # A host or a file of the same name stands between other characters.
        return re.sub(rf"(?<![^\s(])(?:{words})(?![^\s,:;)])", spell, text) if words else text
