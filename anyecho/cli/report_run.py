"""Read result files, and print, merge or compare them."""

from __future__ import annotations

__all__ = ("read_document", "run_report")

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from anyecho.cli.output_options import STDOUT, OutputOptions
from anyecho.cli.results import check_configurations, check_outputs, deliver
from anyecho.errors import UsageError
from anyecho.measure.compare import Group, compare, compare_within, groups, matched
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
    check_outputs(outputs, has_baseline=len(files) > 1 and not together)
    documents = [read_document(each) for each in files]
    if together:
        documents = [(merge_documents if together == "merged" else join_documents)(documents)]
        files = [together]
    check_configurations(outputs, len(groups(documents[0])))
    named = [*zip(files, documents, strict=True)]
    baseline, *judged = [_groups(*each, several=len(files) > 2) for each in named]
    if not judged:
        [document], judged = documents, [baseline]
        comparisons = compare_within(document)
        lines = series_lines(document, percentiles)
    else:
        if outputs.json is not None or outputs.hdr is not None:
            raise UsageError(
                "json and hdr take one result: give one file, --merge or --join", options=("json", "hdr")
            )
        comparisons = [compare(*pair) for each in judged for pair in matched(baseline, each)]
        lines = [line for each in comparisons for line in comparison_lines(each)]
        compared = {each.changed.name for each in comparisons}
        left_out = [group.name for each in judged for group in each if group.name not in compared]
        lines += [f"! {name}: not compared: {files[0]} has no such configuration" for name in left_out]

    return deliver(
        documents[-1],
        outputs,
        lines,
        judged=[group for each in judged for group in each],
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


def _groups(file: str, document: Document, *, several: bool) -> list[Group]:
    """Return the groups. One alone is named by its file; of `several` files, all names begin with it."""
    found = groups(document)
    if len(found) == 1:
        return [replace(found[0], name=file)]

    return [replace(each, name=f"{file}: {each.name}") for each in found] if several else found
