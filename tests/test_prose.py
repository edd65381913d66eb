"""Sentences have things as subjects: pronouns for persons are rare in code, messages and documents.

A code span on one line (`who`) quotes a word and is not counted.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "anyecho").rglob("*.py"))
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]

PER_1000_WORDS = 1
PRONOUN = re.compile(r"\b(who|whoever|whom|whose|nobody|somebody|everybody|anybody|others)\b", re.IGNORECASE)
#: Short, so that a sentence between two backticks is counted.
CODE_SPAN = re.compile(r"(?<!`)(`{1,2})[^`\n]{1,30}\1(?!`)")
#: Metaphors that were names once. GLOSSARY.md has the terms in use.
RETIRED_NAME = re.compile(
    r"(?i:_*(alone|bare_errors|breath|course|doorman|dry|entrance|forgive|give_up|glance|go_on|hope|introduction"
    r"|learn_who_was_asked|ledger|owe|owing|patience|patient|read_once|reception|sent_before|settle"
    r"|short_read_empties|speakers?|stored|tell_start|two|within_descriptors))|Asserted|_?(DOUBT|ODD|PIECE|PROMPT)"
)
VAGUE_TEST_NAME = re.compile(r"test_(so|nor|one|it|who|those|and|but)_")

_Documented: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Line(NamedTuple):
    path: Path
    number: int
    text: str


def docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, _Documented) and ast.get_docstring(node, clean=False) is not None:
            statement = node.body[0]
            assert isinstance(statement, ast.Expr)
            assert isinstance(statement.value, ast.Constant)
            yield statement.value


def comments_and_docstrings(path: Path) -> Iterator[Line]:
    source = path.read_text(encoding="utf-8")
    for node in docstrings(ast.parse(source)):
        for number, text in enumerate(str(node.value).splitlines(), node.lineno):
            yield Line(path, number, text)

    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Line(path, token.start[0], token.string)


def messages(path: Path) -> Iterator[Line]:
    """Yield each string of three words or more that is no docstring: help texts, errors, log lines, output.

    A field of an f-string is `{}`.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(node) for node in docstrings(tree)}
    for node in ast.walk(tree):  # breadth first: an f-string comes before its parts
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            text = node.value
        else:
            continue

        if len(text.split()) >= 3:
            yield Line(path, node.lineno, text)


def lines(path: Path) -> Iterator[Line]:
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        yield Line(path, number, text)


def pronouns(text: str) -> list[str]:
    return PRONOUN.findall(CODE_SPAN.sub("code", text))


@pytest.mark.parametrize(
    ("texts", "paths"),
    [(comments_and_docstrings, MODULES), (messages, MODULES), (lines, DOCUMENTS)],
    ids=["comments and docstrings", "messages", "documents"],
)
def test_pronouns_for_persons_are_rare(texts: Callable[[Path], Iterator[Line]], paths: list[Path]) -> None:
    found = [line for path in paths for line in texts(path)]
    words = sum(len(line.text.split()) for line in found)
    assert words > 1000

    rate = sum(len(pronouns(line.text)) for line in found) / words * 1000
    report = [
        f"{line.path.relative_to(ROOT)}:{line.number}: {line.text.strip()}" for line in found if pronouns(line.text)
    ]
    assert rate <= PER_1000_WORDS, "\n".join([f"{rate:.1f} per 1,000 words, see STYLE.md:", *report])


def test_names_of_tests_make_sense_alone() -> None:
    vague = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and VAGUE_TEST_NAME.match(node.name)
    ]
    assert not vague, "\n".join(vague)


def test_names_are_terms_and_no_metaphors() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{token.start[0]}: {token.string}"
        for path in MODULES
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
        if token.type == tokenize.NAME and RETIRED_NAME.fullmatch(token.string)
    ]
    assert not found, "\n".join(found)


def test_pronouns_are_found_in_each_kind_of_text(tmp_path: Path) -> None:
    path = tmp_path / "planted.py"
    path.write_text(
        '"""Serve whoever\ncomes, but not `whom`."""\n'
        "limit = 1  # Others wait.\n"
        'raise ValueError(f"nobody listens on {limit}" " but `who` may")\n'
        'print("a peer whose socket is closed", "who", "whoever")\n'
    )
    found = {
        (line.number, word)
        for texts in (comments_and_docstrings, messages)
        for line in texts(path)
        for word in pronouns(line.text)
    }
    assert found == {(1, "whoever"), (3, "Others"), (4, "nobody"), (5, "whose")}


def test_a_sentence_between_backticks_is_counted() -> None:
    assert pronouns("`a sentence about whoever reads the log`") == ["whoever"]
    assert pronouns("```sh\nanyecho serve  # for nobody\n```") == ["nobody"]
