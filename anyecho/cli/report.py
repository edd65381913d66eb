"""``anyecho report``: print, merge, compare and gate result files."""

from __future__ import annotations

__all__ = ("app", "report")

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from anyecho.cli.flags import verb
from anyecho.cli.help_pages import COMMON, GROUPS
from anyecho.cli.output_options import STDOUT, OutputOptions
from anyecho.errors import UsageError
from anyecho.measure.options import PERCENTILES, format_percentiles, parse_percentiles


def report(
    *files: Annotated[str, Parameter(show_env_var=False, allow_leading_hyphen=True)],
    merge: Annotated[
        bool, Parameter(help="Merge all runs into one, as shards of one load.", negative=(), group=COMMON)
    ] = False,
    join: Annotated[
        bool,
        Parameter(help="Put the runs of all files into one result, as repetitions.", negative=(), group=COMMON),
    ] = False,
    percentiles: Annotated[
        tuple[float, ...],
        Parameter(
            help="Percentiles to print, like 50,99.9.",
            metavar="LIST",
            converter=parse_percentiles,
            show_default=format_percentiles,
            negative=(),
            group=GROUPS["Results"],
        ),
    ] = PERCENTILES,
    schema: Annotated[
        bool, Parameter(help="Print the JSON Schema of a result file.", negative=(), group=COMMON)
    ] = False,
    outputs: OutputOptions,
) -> int:
    """Print result files of anyecho bench --json; - is standard input.

    One file is printed. Of several, each is compared with the first, the baseline: the unit is the repetition, and
    four of each are needed for a verdict. With --merge, all runs become one, exactly; with --join, they are the
    repetitions of one result.
    Exit status: 0, or 2 for a file that is no result, or 99 if a condition of --fail-if holds. A run that was
    interrupted, saturated, or sent late fails every condition.
    """
    if schema:
        from anyecho.cli.results import print_lines

        schema_file = Path(__file__).parent.parent.joinpath("measure", "result.schema.json")
        print_lines(schema_file.read_text().splitlines())
        return 0
    if merge and join:
        raise UsageError("merge and join exclude each other", options=("merge", "join"))

    # An option that does not exist is among the files, because - is a file.
    if unknown := [each for each in files if each.startswith("-") and each != STDOUT]:
        raise UsageError(f"unknown option {unknown[0]}: see anyecho report --help")
    if not files:
        raise UsageError("name a result file, as anyecho bench --json FILE writes it")

    # Late: the other verbs need neither histograms nor statistics.
    from anyecho.cli.report_run import run_report

    together: Literal["merged", "joined", ""] = "merged" if merge else "joined" if join else ""
    return run_report(files, outputs, percentiles, together)


app = verb(report)
