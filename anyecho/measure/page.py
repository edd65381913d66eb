"""One self-contained HTML page for results."""

from __future__ import annotations

__all__ = ("page",)

from collections.abc import Sequence

from anyecho.measure.compare import Comparison
from anyecho.measure.result import Document


def page(documents: Sequence[tuple[str, Document]], comparisons: Sequence[Comparison] = ()) -> str:
    """Return the page of `documents`, each with its name."""
    return "<!doctype html><title>anyecho</title>"
