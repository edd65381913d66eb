"""Options from the environment: ``ANYECHO_IDLE_TIMEOUT=5m`` is ``--idle-timeout 5m``.

An empty variable counts as unset, because ``${X:-}`` in a compose file yields an empty one. An unknown variable is
a warning and never an error: another version may read it.

In messages, the attribute name of an option is replaced by the flag, the variable or the key that the user wrote.
"""

from __future__ import annotations

__all__ = ("ENVIRONMENT", "Environment", "is_readable")

import logging
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import get_args, get_origin

from cyclopts import App, Token
from cyclopts.argument import Argument, ArgumentCollection
from cyclopts.config import Env

from anyecho.errors import AddressError, UsageError

#: The prefix of environment variables.
PREFIX = "ANYECHO_"
#: Flags that are not derived from the attribute: for a switch that is on by default, the flag that turns it off.
_FLAGS = {
    "family": "-4 or -6",
    "faults": "--fault",
    "keepalive": "--no-keepalive",
    "tcp_nodelay": "--no-tcp-nodelay",
}
#: Variables that Kubernetes sets in every container for a service called anyecho or anyecho-something.
_KUBERNETES = re.compile(rf"{PREFIX}(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_.*)?)")
_SWITCHES = {"on": "true", "off": "false"}


class Environment(Env):
    """A cyclopts configuration that reads flags from the environment where the command line has none.

    Spaces or commas separate several values of a flag.
    """

    def __init__(self) -> None:
        super().__init__(PREFIX, command=False)
        #: Once a command line has been parsed: the options that a variable set.
        self.used: tuple[str, ...] = ()
        #: The options that a configuration file set, each with its name in messages.
        self.in_file: dict[str, str] = {}
        #: The application with the verbs that read variables. A variable of any verb is known to every verb.
        self.root: App | None = None
        #: Whether lines about options are logged. A worker logs none: its supervisor has done so for all workers.
        self.options_reported = True
        self._unknown: tuple[str, ...] = ()

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        del app, commands
        for argument in arguments:
            if not argument.tokens and is_readable(argument):
                self._read(argument)
            if bool in (argument.hint, *get_args(argument.hint)):
                argument.tokens[:] = [_switched(token) for token in argument.tokens]

        read = [each for each in arguments if each.tokens and each.tokens[0].source == self.source]
        self.used = tuple(each.field_info.name for each in read)
        self._unknown = tuple(self._find_unknown())

    def _read(self, argument: Argument) -> None:
        variable = self._convert_argument((), argument)
        text = os.environ.get(variable, "")
        if get_origin(argument.hint) is tuple:
            # A fault has commas of its own.
            values = text.split() if argument.name == "--fault" else re.findall(r"[^\s,]+", text)
        else:
            values = [text] if text.strip() else []
        for index, value in enumerate(values):
            argument.append(Token(keyword=variable, value=value, source=self.source, index=index))

    def _find_unknown(self) -> Iterator[str]:
        """Yield the variables that no verb reads, each with the most similar known name."""
        given = [name for name, text in os.environ.items() if name.startswith(PREFIX) and text.strip()]
        candidates = [name for name in given if not _KUBERNETES.fullmatch(name)]
        if not candidates or (root := self.root) is None:
            return

        known = {
            self._convert_argument((), argument)
            for verb in root
            if not verb.startswith("-")
            for argument in root[verb].assemble_argument_collection()
            if is_readable(argument)
        }
        words = {name.removeprefix(PREFIX) for name in known}
        for name in sorted(set(candidates) - known):
            nearest = get_close_matches(name.removeprefix(PREFIX), words, n=1, cutoff=0.7)
            yield f"{name} (did you mean {PREFIX}{nearest[0]}?)" if nearest else name

    @contextmanager
    def attached_to(self, logger: logging.Logger) -> Iterator[None]:
        """Log unknown variables as a warning; within the block, `logger` names options as the user wrote them."""
        logger.addFilter(self._substitute_names)
        try:
            if self._unknown:
                logger.warning("unknown variables are ignored: %s", ", ".join(self._unknown))
            yield
        finally:
            logger.removeFilter(self._substitute_names)

    @contextmanager
    def naming(self, option: str) -> Iterator[None]:
        """Put the name of `option` before an error about its value, if the value is from a configuration file."""
        try:
            yield
        except (UsageError, AddressError) as exc:
            if option not in self.in_file:
                raise
            raise UsageError(f"{self.in_file[option]}: {exc}") from exc

    def substitute(self, text: str, options: Collection[str]) -> str:
        """Return `text` with the first occurrence of each of `options`, attribute names, as the user wrote it."""
        names = {each: self._spelling(each) for each in options if each.isidentifier()}  # not ?proxy= of an address
        # The delimiters exclude a host or a file of the same name.
        words = rf"(?<![^\s(])(?:{'|'.join(names)})(?![^\s,:;)])"
        return re.sub(words, lambda match: names.pop(match[0], match[0]), text) if names else text

    def _spelling(self, option: str) -> str:
        """Return ``--ssl-keyfile`` for ``ssl_keyfile``, or ``ANYECHO_SSL_KEYFILE`` if that variable set it."""
        if option in self.used:
            return PREFIX + option.upper()

        return self.in_file.get(option) or _FLAGS.get(option, "--" + option.replace("_", "-"))

    def _substitute_names(self, record: logging.LogRecord) -> bool:
        """Name options in `record` as the user wrote them; return whether it is logged."""
        if options := getattr(record, "options", ()):
            record.msg, record.args = self.substitute(record.getMessage(), options), ()

        return self.options_reported or not options


#: Of this process: the verbs and the reader of ``--config`` share it.
ENVIRONMENT = Environment()


def is_readable(argument: Argument) -> bool:
    """Return whether a variable can set `argument`: a flag, or the address of a client, but no list of words."""
    kind = argument.field_info.kind
    return argument.show and kind in (kind.KEYWORD_ONLY, kind.POSITIONAL_ONLY)


def _switched(token: Token) -> Token:
    return token.evolve(value=_SWITCHES.get(token.value.lower(), token.value))
