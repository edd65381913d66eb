"""One-line messages for errors of the command line, with a suggestion where there is one."""

from __future__ import annotations

__all__ = ("describe",)

import re
from difflib import get_close_matches
from typing import get_args

from cyclopts import CoercionError, CycloptsError, UnknownCommandError, UnknownOptionError, UnusedCliTokensError

from anyecho.cli.config_file import FROM_FILE

_ADDRESS = "give the address: anyecho serve HOST:PORT (or -b HOST:PORT)"

#: Of each verb that connects.
_CLIENT = {
    **dict.fromkeys(("--host", "--address", "--bind", "-b"), "give the address first: anyecho {verb} HOST:PORT"),
    **dict.fromkeys(("--tls", "--ssl"), "write tls://HOST:PORT"),
    **dict.fromkeys(("--udp", "-u"), "write udp://HOST:PORT"),
    **dict.fromkeys(("--unix", "-U"), "write unix:/PATH"),
    **dict.fromkeys(("--ca", "--cafile", "--ssl-ca-certs", "--CAfile"), "--cacert"),
    **dict.fromkeys(("--certfile", "--ssl-certfile"), "--cert"),
    **dict.fromkeys(("--keyfile", "--ssl-keyfile"), "--key"),
    **dict.fromkeys(("--servername", "--server-name"), "--sni"),
}
#: By verb: option names of other programs, and the flag or the advice for each.
_SYNONYMS: dict[str, dict[str, str]] = {
    "serve": {
        **dict.fromkeys(("--host", "--listen", "--address", "--addr", "--interface", "-l", "-H", "-s"), _ADDRESS),
        **dict.fromkeys(("--tls", "--ssl"), "write tls://HOST:PORT, with --ssl-certfile"),
        **dict.fromkeys(("--udp", "-u"), "write udp://HOST:PORT"),
        **dict.fromkeys(("--unix", "--uds", "--socket", "-U"), "write unix:/PATH"),
        **dict.fromkeys(("--fd",), "write fd://NUMBER"),
        **dict.fromkeys(("--timeout", "-t", "-w"), "--idle-timeout"),
        **dict.fromkeys(("--cert", "--certfile", "--certificate", "--tls-cert"), "--ssl-certfile"),
        **dict.fromkeys(("--key", "--keyfile", "--tls-key"), "--ssl-keyfile"),
        **dict.fromkeys(("--cacert", "--ca", "--cafile", "--client-ca"), "--ssl-ca-certs, with --ssl-cert-reqs"),
        **dict.fromkeys(("--proxy", "--accept-proxy"), "--proxy-protocol, with --proxy-trusted"),
    },
    "ping": {
        **_CLIENT,
        **dict.fromkeys(("--repeat", "-n"), "--count"),
        **dict.fromkeys(("-A", "-f", "--flood", "--adaptive"), "--interval 0"),
    },
    "bench": {
        **_CLIENT,
        **dict.fromkeys(("-t", "--time"), "--duration"),
        **dict.fromkeys(("-q", "--qps", "-R", "--throughput"), "--rate"),
        **dict.fromkeys(("--concurrency", "--clients"), "--connections"),
        **dict.fromkeys(("--latency", "-L"), "the latencies are always printed (--percentiles LIST)"),
        **dict.fromkeys(("--length", "-l"), "--size"),
    },
    "send": {
        **_CLIENT,
        **dict.fromkeys(("--count", "-c", "-n"), "--repeat"),
        **dict.fromkeys(("--idle-timeout", "-w", "-t"), "--timeout"),
        **dict.fromkeys(("--proxy-protocol", "--send-proxy", "--haproxy-protocol"), "--proxy-header"),
    },
}
_COMMON_SYNONYMS = {
    **dict.fromkeys(("--loop", "--event-loop", "--uvloop", "--trio", "--asyncio"), "--backend"),
    **dict.fromkeys(("--verbose", "-v"), "--log-level info"),
    **dict.fromkeys(("--debug", "-d"), "--log-level debug"),
    **dict.fromkeys(("--quiet", "-q"), "--log-level error"),
}


def describe(exc: CycloptsError) -> str:
    """Return one line: what is wrong and, if known, what to write instead."""
    if isinstance(exc, UnknownOptionError) and exc.token.source == "cli":
        return _unknown_option(exc)
    if isinstance(exc, UnknownCommandError) and exc.unused_tokens and re.search("[:/]", exc.unused_tokens[0]):
        address = exc.unused_tokens[0]
        return f"{address!r} is no command: write anyecho serve {address}, or anyecho send {address} MESSAGE"
    if isinstance(exc, CoercionError) and exc.token is not None and (words := _switch_words(exc)):
        return f"Invalid value for {exc.token.keyword}: {exc.token.value!r} is not {words}"
    if isinstance(exc, UnusedCliTokensError) and exc.unused_tokens:
        return f"unexpected argument {exc.unused_tokens[0]!r}"

    return str(exc).replace(FROM_FILE, "")


def _switch_words(exc: CoercionError) -> str:
    """Return the values of a switch; empty if the error is not for one."""
    hint = exc.argument.hint if exc.argument is not None else exc.target_type
    if bool not in (hint, *get_args(hint)):
        return ""

    others = "".join(f"{word}, " for each in get_args(hint) for word in get_args(each))
    # cyclopts parses the value after "=" of a switch itself, and does not accept on and off there.
    words, end = ("", ", or nothing") if exc.token is None or exc.token.source == "cli" else ("on, off, ", "")
    return f"{others}{words}yes, no, true, false, 1 or 0{end}"


def _unknown_option(exc: UnknownOptionError) -> str:
    verb = (exc.command_chain or ("",))[0]
    word = exc.token.keyword or exc.token.value
    option, _, value = word.partition("=")
    if option in ("--port", "-p"):
        tokens = exc.root_input_tokens or []
        after = tokens[tokens.index(word) + 1 :] if word in tokens else []
        port = value or next(iter(after), "")
        return f"unknown option {option}: a port is part of the address: anyecho {verb} {_example(verb, port)}"
    if hint := _SYNONYMS.get(verb, {}).get(option) or _COMMON_SYNONYMS.get(option):
        hint = hint.replace("{verb}", verb)
        return f"unknown option {option}: {hint if ' ' in hint and hint[0] != '-' else f'did you mean {hint}?'}"

    flags = [name for argument in exc.argument_collection for name in argument.names if name.startswith("--")]
    nearest = get_close_matches(option, flags, n=1, cutoff=0.75)
    return f"unknown option {option}: " + (
        f"did you mean {nearest[0]}?" if nearest else f"see anyecho {verb} --help"
    )


def _example(verb: str, port: str) -> str:
    port = port if re.fullmatch("[0-9]+", port, re.A) else "PORT"
    return f":{port}" if verb == "serve" else f"HOST:{port}"
