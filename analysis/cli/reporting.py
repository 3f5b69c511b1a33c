"""The command ``report``: all that a fit says, as a page or as Markdown."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunecast.analysis.cli.inputs import note_unseen, saved_fit
from tunecast.analysis.cli.options import At, FitFile
from tunecast.analysis.cli.outputs import marks_of, say, writing
from tunecast.analysis.tables import check_output, read_table

if TYPE_CHECKING:
    from tunecast.models import Fit

REPORT_SUFFIXES = {"html": (".html", ".htm"), "md": (".md",)}


class ReportFormat(StrEnum):
    """What a report is written as."""

    html = "html"
    md = "md"


def report(
    context: typer.Context,
    fit_file: FitFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page or text to write.")
    ],
    format_: Annotated[
        ReportFormat,
        typer.Option("--format", help="A page, or Markdown with pictures and LaTeX tables beside."),
    ] = ReportFormat.html,
    at: At = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="PLAN", help="A table written by 'tunecast plan'.")
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="LEDGER", help="Earlier forecasts, to be scored by the fitted runs."),
    ] = None,
    backtest: Annotated[
        bool,
        typer.Option(
            "--backtest", help="Fit twice more, without the largest size and without the most data."
        ),
    ] = False,
) -> None:
    """Write all that a fit says as one page to decide from."""
    from tunecast.analysis.ledger import read_ledger, track_record
    from tunecast.analysis.report.contents import contents

    check_output(output, REPORT_SUFFIXES[format_.value])
    result = saved_fit(fit_file, None, None)
    targets = None if at is None else read_table(at)
    if targets is not None:
        note_unseen(result, targets)
    report = contents(
        result,
        targets=targets,
        plan=None if plan is None else read_table(plan),
        track=None if ledger is None else track_record(read_ledger(ledger), result.runs),
        commands=_commands(result, context),
        backtest=backtest,
    )
    with writing(output):
        if format_ is ReportFormat.html:
            from tunecast.analysis.report.page import write_html

            write_html(report, output)
        else:
            from tunecast.analysis.report.markdown import write_markdown

            write_markdown(report, output)
    for line in marks_of(result):
        say(line)
    say(f"wrote {output}.")


def _commands(result: Fit, context: typer.Context) -> list[str]:
    """Return the commands that lead from the runs to this answer, with the names of files alone."""
    info = result.info
    words = ["tunecast", "fit", "RUNS", "-o", "FIT.nc"]
    for name in ("law", "data", "curve", "draws", "tune", "chains", "seed"):
        if name in info:
            words += [f"--{name}", str(info[name])]
    for name in ("factors", "cell"):
        if info.get(name):
            words += [f"--{name}", ",".join(info[name])]
    words += ["--priors", Path(str(info.get("priors_name", "weak"))).name]
    own = ["tunecast", "report", context.params["fit_file"].name]
    for name, value in context.params.items():
        if isinstance(value, Path) and name != "fit_file":
            own += ["-o" if name == "output" else f"--{name}", value.name]
        elif name == "format_" and value is not ReportFormat.html:
            own += ["--format", value.value]
        elif value is True:
            own.append(f"--{name}")
    return [shlex.join(words), shlex.join(own)]
