"""A bar chart of the main figures, as SVG."""

from __future__ import annotations

__all__ = ("draw",)

import statistics
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from results import Results

Panel: TypeAlias = tuple[str, str, float, str]
PANELS: tuple[Panel, ...] = (
    ("100x64", "cpu_us_per_echo", 1.0, "CPU us per echo\n100 connections x 64 B"),
    ("1000x64", "cpu_us_per_echo", 1.0, "CPU us per echo\n1000 connections x 64 B"),
    ("100x64", "messages_per_second", 1e3, "thousand messages/s\n100 connections x 64 B"),
    ("10x64KiB", "megabytes_per_second", 1.0, "MB/s\n10 connections x 64 KiB"),
)
OURS, THEIRS = "#1f6f8b", "#b8b8b8"


def draw(results: Results, path: Path) -> str:
    """Save the chart at `path`; if it cannot be drawn, return why."""
    # By name, because the types of an optional package are missing where it is not installed.
    try:
        matplotlib = import_module("matplotlib")
    except ImportError:
        return "no plot: matplotlib is not installed (pip install --group bench)"

    panels = [panel for panel in PANELS if results.values.get(panel[0])]
    if not panels:
        return "no plot: nothing was measured that is drawn"

    matplotlib.use("svg")
    # Reproducible output, with text as text.
    matplotlib.rcParams.update({"svg.hashsalt": "anyecho", "svg.fonttype": "none", "font.size": 9})
    pyplot = import_module("matplotlib.pyplot")

    names = [server.name for server in results.servers if not server.absent][::-1]
    figure, axes = pyplot.subplots(
        1, len(panels), sharey=True, squeeze=False, figsize=(1.5 + 2.8 * len(panels), 0.8 + 0.26 * len(names))
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        _fill(axis, results, names, panel)

    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    return ""


def _fill(axis: Any, results: Results, names: list[str], panel: Panel) -> None:
    """Draw medians as bars, minima and maxima as whiskers."""
    workload, key, unit, title = panel
    values = [[value / unit for value in results.of(workload, name, key)] or [0.0] for name in names]
    middle = [statistics.median(each) for each in values]
    whiskers = [
        [m - min(each) for m, each in zip(middle, values, strict=True)],
        [max(each) - m for m, each in zip(middle, values, strict=True)],
    ]
    colours = [OURS if name.startswith("anyecho") else THEIRS for name in names]
    axis.barh(names, middle, xerr=whiskers, color=colours, error_kw={"elinewidth": 0.8, "ecolor": "#444444"})
    axis.set_title(title, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", linewidth=0.4)
    axis.set_axisbelow(True)
