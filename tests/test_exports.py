"""The public names of `anyecho`: declared, importable, and loaded lazily."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import anyecho

MODULES = sorted(module.name for module in pkgutil.walk_packages(anyecho.__path__, "anyecho."))
#: Modules without `__all__`.
NO_ALL = {"anyecho.__main__", "anyecho._version"}
#: Packages that collect public names.
PUBLIC = {"anyecho.faults"}
#: Modules that ``import anyecho`` must not load.
#: Modules of `anyecho.measure` for a run or a report.
RUN_ONLY = ("result", "statistics", "page", "text", "ping", "probes")
VERBS = ("serve", "send", "bench", "ping", "report")
LAZY = {"cyclopts", "rich", "trio", "uvloop"}


def run_fresh(code: str) -> list[str]:
    """Run `code` in a fresh interpreter; return the words that it prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.split()


def declared_modules() -> dict[str, str]:
    """Return name -> module, as a type checker reads ``anyecho/__init__.py``."""
    [block] = [
        node
        for node in ast.parse(Path(anyecho.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    modules: dict[str, str] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            # Without "as", a strict type checker takes the name for a private one.
            assert alias.asname == alias.name
            modules[alias.name] = node.module or ""

    return modules


def test_all_is_a_sorted_tuple_without_repeats() -> None:
    assert isinstance(anyecho.__all__, tuple)
    assert list(anyecho.__all__) == sorted(set(anyecho.__all__))


@pytest.mark.parametrize("name", anyecho.__all__)
def test_a_public_name_is_the_object_of_its_module(name: str) -> None:
    module = import_module(declared_modules().get(name, "anyecho.echo"))

    assert getattr(anyecho, name) is getattr(module, name)
    assert name in module.__all__


def test_dir_shows_the_names_before_any_is_used() -> None:
    shown = run_fresh("import anyecho; print(*dir(anyecho))")

    assert set(anyecho.__all__) <= {*shown}
    assert shown == sorted(shown)


def test_type_checking_imports_match_the_public_names() -> None:
    assert {*declared_modules(), "echo"} == set(anyecho.__all__)


def test_a_star_import_binds_every_public_name() -> None:
    names = run_fresh("from anyecho import *; print(*dir())")

    assert set(anyecho.__all__) == {name for name in names if not name.startswith("__")}


@pytest.mark.parametrize("module", ["anyecho", "anyecho.faults"])
@pytest.mark.parametrize("name", ["nonsense", "__wrapped__", "Poller"])
def test_an_unknown_attribute_is_named_in_the_error(name: str, module: str) -> None:
    with pytest.raises(AttributeError, match=f"^module '{module}' has no attribute '{name}'$"):
        getattr(import_module(module), name)


def test_the_version_is_an_attribute_but_not_in_all() -> None:
    assert anyecho.__version__ == import_module("anyecho._version").__version__
    assert "__version__" in dir(anyecho)
    assert "__version__" not in anyecho.__all__


@pytest.mark.parametrize("module_name", MODULES)
def test_all_of_a_module_lists_existing_names(module_name: str) -> None:
    module = import_module(module_name)
    if module_name in NO_ALL or (hasattr(module, "__path__") and module_name not in PUBLIC):
        assert not hasattr(module, "__all__")
        return

    names = module.__all__
    assert isinstance(names, tuple)
    # Constants first, as ruff sorts them (RUF022).
    assert list(names) == sorted(set(names), key=lambda name: (not name.isupper(), name))
    assert [name for name in names if not hasattr(module, name)] == []


def test_importing_anyecho_loads_no_backend_no_command_line_and_no_socket() -> None:
    loaded = run_fresh("import sys; before = {*sys.modules}; import anyecho; print(*{*sys.modules} - before)")

    assert "anyecho.echo" in loaded
    assert {*loaded} & {*LAZY, "asyncio", "socket", "anyecho.net"} == set()


def test_using_all_of_the_library_loads_no_backend_and_no_command_line() -> None:
    loaded = run_fresh("import sys; from anyecho import *; print(*sys.modules)")

    assert "anyecho.server.server" in loaded
    assert {*loaded} & {*LAZY, "anyecho.cli"} == set()


def test_the_command_line_without_a_verb_loads_no_verb() -> None:
    loaded = {*run_fresh("import sys, anyecho.cli.main; print(*sys.modules)")}

    assert "anyecho.cli.environment" in loaded
    assert loaded & {*(f"anyecho.cli.{verb}" for verb in VERBS), "importlib.metadata", "anyecho.server"} == set()


def test_the_verbs_load_no_histogram_and_no_page_before_they_run() -> None:
    verbs = ", ".join(f"anyecho.cli.{verb}" for verb in VERBS)
    loaded = {*run_fresh(f"import sys, {verbs}; print(*sys.modules)")}

    assert "anyecho.cli.report" in loaded
    assert {name for name in loaded if name.startswith(("hdrh", "jsonschema", "h11", "prometheus_client"))} == set()
    assert loaded & {"rich", *(f"anyecho.measure.{name}" for name in RUN_ONLY), "anyecho.cli.ping_lines"} == set()


@pytest.mark.parametrize(
    "imports",
    [
        "import anyecho.echo",
        "from importlib import import_module; import_module('anyecho.echo')",
        f"import anyecho, {', '.join(MODULES)}",
    ],
    ids=["its module", "its module by name", "every module"],
)
def test_echo_is_the_function_after_any_import(imports: str) -> None:
    assert run_fresh(f"{imports}; import anyecho; print(type(anyecho.echo).__name__)") == ["function"]
