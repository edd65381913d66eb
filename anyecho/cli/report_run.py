"""Read result files, and print, merge or compare them."""

from __future__ import annotations

__all__ = ("read_document", "run_report")

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from anyecho.cli.output_options import STDOUT, OutputOptions
from anyecho.cli.results import check_outputs, deliver
from anyecho.errors import UsageError
from anyecho.measure.compare import Comparison, Group, compare, compare_within, groups, matched
from anyecho.measure.comparison_text import comparison_lines
from anyecho.measure.merge import join_documents, merge_documents
from anyecho.measure.page import page
from anyecho.measure.result import Document
from anyecho.measure.series_text import series_lines
from anyecho.net.descriptors import read_some


def run_report(
    files: Sequence[str],
    outputs: OutputOptions,
    percentiles: Sequence[float],
    together: Literal["merged", "joined", ""],
) -> int:
    """Print the files, compared or `together` in one; write the outputs; return the exit status."""
    documents = [read_document(each) for each in files]
    if together:
        documents = [(merge_documents if together == "merged" else join_documents)(documents)]
        files = [together]
    check_outputs(outputs, has_baseline=len(documents) > 1, configurations=len(groups(documents[0])))
    if len(documents) == 1:
        [document] = documents
        comparisons = compare_within(document)
        lines = series_lines(document, percentiles)
    else:
        if outputs.json is not None or outputs.hdr is not None:
            raise UsageError(
                "json and hdr take one result: give one file, --merge or --join", options=("json", "hdr")
            )
        comparisons = _with_first(files, documents)
        # The gates are about the files after the baseline.
        document = replace(documents[-1], runs=tuple(run for each in documents[1:] for run in each.runs))
        lines = [line for each in comparisons for line in comparison_lines(each)]

    named = [*zip(files, documents, strict=True)]
    return deliver(
        document,
        outputs,
        lines,
        name=files[-1] if len(files) <= 2 else "",
        comparisons=comparisons,
        page=lambda: page(named, comparisons),
    )


def read_document(name: str) -> Document:
    """Return the document in the file `name`; ``-`` is standard input. Raises `UsageError`."""
    try:
        if name == STDOUT:
            # Not by `sys.stdin`, which is None if it was closed, and reads nothing in non-blocking mode.
            text = b"".join(iter(partial(read_some, 0, 1 << 20), b""))
            return Document.from_json(text, "standard input")
        with open(name, "rb") as file:
            return Document.from_json(file.read(), name)
    except OSError as exc:
        raise UsageError(f"cannot read {name}: {exc.strerror}") from exc


def _with_first(files: Sequence[str], documents: Sequence[Document]) -> list[Comparison]:
    baseline = _named(files[0], documents[0])
    return [
        compare(one, other)
        for name, document in zip(files[1:], documents[1:], strict=True)
        for one, other in matched(baseline, _named(name, document))
    ]


def _named(file: str, document: Document) -> list[Group]:
    """Return the groups of `document`, by the name of its file unless there are several."""
    found = groups(document)
    return [replace(found[0], name=file)] if len(found) == 1 else found
