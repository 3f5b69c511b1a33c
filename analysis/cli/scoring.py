"""The command ``score``: what forecasts were worth, once their runs have been made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunecast.analysis.cli.inputs import checked_runs
from tunecast.analysis.cli.options import By, Output, Plot, Runs
from tunecast.analysis.cli.outputs import PICTURE_SUFFIXES, put_scores
from tunecast.analysis.tables import check_output, read_table
from tunecast.models.errors import TunecastError


def score(
    forecasts: Annotated[
        Path,
        typer.Argument(metavar="FORECASTS", help="A table or a ledger of 'tunecast forecast'."),
    ],
    runs: Runs,
    output: Output = None,
    by: By = None,
    plot: Plot = None,
) -> None:
    """Score forecasts by the runs that were made since."""
    from tunecast.analysis.ledger import is_ledger, open_forecasts
    from tunecast.analysis.targets import split
    from tunecast.models import score_table

    check_output(output)
    check_output(plot, PICTURE_SUFFIXES)
    table = read_table(forecasts)
    frame = checked_runs(runs, None)
    groups = split(by)
    if is_ledger(table):
        table = open_forecasts(table)
        groups = groups or ("day",)
        if table.empty:
            raise TunecastError(f"every forecast in '{forecasts}' was of runs already fitted.")
    if absent := [name for name in groups if name not in table]:
        raise TunecastError(f"'{forecasts}' has no column '{absent[0]}' to score by.")
    scores = score_table(table, frame, groups)
    # A table without the column was not made here, so nothing is known of its convergence.
    if "converged" in table:
        scores["converged"] = bool(table["converged"].all())
    if "simulated" in table or (frame["origin"] == "simulated").any():
        scores["simulated"] = True
    put_scores(scores, output, plot)
