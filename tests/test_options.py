"""Options: each has a line in the documentation of its class, and no limit is the same for all of them."""

from __future__ import annotations

import math
import pydoc
import re
from dataclasses import fields
from inspect import getdoc
from typing import Any, get_type_hints

import pytest

import anyecho
from anyecho.cli.main import app
from anyecho.errors import UsageError
from anyecho.measure.options import BenchOptions

VERBS: dict[Any, list[str]] = {
    anyecho.ServeOptions: ["serve"],
    anyecho.ConnectOptions: ["send", "tcp://localhost:1"],
    anyecho.SocketOptions: ["serve"],
}
GROUPS: list[Any] = [*VERBS, anyecho.TLSServerOptions, anyecho.TLSClientOptions, BenchOptions]
#: All options that are a number or None, but the seed: None is a random one.
LIMITS = [
    (group, name)
    for group in VERBS
    for name, hint in get_type_hints(group).items()
    if hint in (int | None, float | None) and name != "seed"
]
#: Those in which 0 is the same as None, and those in which it is a value of its own; all others refuse it.
ZERO_IS_NONE = {"max_connections_per_ip", "max_bytes", "min_rate", "tcp_notsent_lowat", "sndbuf", "rcvbuf"}
ZERO_IS_ZERO = {"graceful_timeout", "linger", "proxy_timeout", "tcp_user_timeout"}


@pytest.mark.parametrize("group", GROUPS)
def test_help_of_an_options_class_shows_the_line_of_each_option(group: Any) -> None:
    documentation, page = getdoc(group) or "", pydoc.render_doc(group)
    for each in fields(group):
        text = each.metadata.get("help") or each.metadata["doc"]
        shown = re.sub("--[a-z-]+", lambda flag: f"`{flag[0][2:].replace('-', '_')}`", text)
        assert f"\n    {each.name}: {shown}" in documentation
        assert f"{each.name}: {shown}" in page


@pytest.mark.parametrize(("group", "name"), LIMITS)
def test_none_infinity_and_off_are_no_limit(group: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert getattr(group(**{name: None}), name) is None
    assert getattr(group(**{name: math.inf}), name) is None
    flag = f"--{name.replace('_', '-')}"
    for tokens in ([flag, "off"], []):
        _, bound, _ = app.parse_args([*VERBS[group], *tokens], exit_on_error=False, print_error=False)
        assert bound.arguments[name] is None
        monkeypatch.setenv(f"ANYECHO_{name.upper()}", "off")


@pytest.mark.parametrize(("group", "name"), LIMITS)
@pytest.mark.parametrize("value", [-1, math.nan])
def test_a_negative_limit_is_a_usage_error(group: Any, name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"^{name} must be "):
        group(**{name: value})


@pytest.mark.parametrize(("group", "name"), LIMITS)
def test_zero_is_no_limit_where_it_was_before_and_never_silently_another_value(group: Any, name: str) -> None:
    if name in ZERO_IS_NONE | ZERO_IS_ZERO:
        assert getattr(group(**{name: 0}), name) == (None if name in ZERO_IS_NONE else 0)
        return

    with pytest.raises(UsageError, match=rf"^{name} must be more than 0, not 0 \(no limit: off, in Python None\)$"):
        group(**{name: 0})
