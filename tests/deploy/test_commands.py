"""The command lines in deploy/ have only flags and addresses that the program knows."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from anyecho.address import parse_address
from anyecho.cli.main import app
from anyecho.server.options import ServeOptions
from tests.deploy.commands import DEPLOY, command_lines

LINES = [pytest.param(words, id=f"{name}: {words[0]}") for name, words in command_lines()]


@pytest.mark.parametrize("words", LINES)
def test_a_command_line_of_deploy_is_accepted(words: list[str]) -> None:
    _, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
    given: dict[str, Any] = bound.arguments
    for address in (*given.get("addresses", ()), *given.get("bind", ()), *filter(None, [given.get("address")])):
        parse_address(address)
    if words[0] == "serve":
        # Wrong values and excluded pairs are found here.
        ServeOptions(**{each.name: given[each.name] for each in fields(ServeOptions) if each.name in given})


def test_each_kind_of_file_has_a_command_line() -> None:
    kinds = {path.parent.name for path in DEPLOY.glob("*/*")}
    found = {path.parent.name for name, _ in command_lines() for path in DEPLOY.glob(f"*/{name}")}

    assert found == kinds
