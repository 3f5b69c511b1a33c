"""The commands that sample: ``fit`` and ``backtest``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunecast.analysis.cli.inputs import checked_runs, fit_options
from tunecast.analysis.cli.options import (
    By,
    Cell,
    Chains,
    Curve,
    Data,
    Draws,
    Factors,
    Law,
    Output,
    Plot,
    Priors,
    Quiet,
    Runs,
    Seed,
    Tune,
    Unconverged,
    Where,
)
from tunecast.analysis.cli.outputs import (
    PICTURE_SUFFIXES,
    NotConverged,
    convergence_required,
    marks_of,
    note_failed_checks,
    put_scores,
    say,
    shows_progress,
    why_unconverged,
    writing,
)
from tunecast.analysis.tables import check_output, show

FIT_SUFFIXES = (".nc",)


def fit(
    runs: Runs,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FIT.nc", help="The file to write.")
    ],
    law: Law = "rectified",
    factors: Factors = None,
    data: Data = "finetune_examples",
    cell: Cell = None,
    curve: Curve = "base_model",
    where: Where = None,
    priors: Priors = "weak",
    draws: Draws = None,
    tune: Tune = None,
    chains: Chains = None,
    seed: Seed = 0,
    allow_unconverged: Unconverged = False,
    quiet: Quiet = False,
) -> None:
    """Fit a law to run tables and save the posterior draws."""
    from tunecast.models import fit as fit_runs

    check_output(output, FIT_SUFFIXES)
    frame = checked_runs(runs, where)
    options = fit_options(law, factors, data, cell, curve, priors, draws, tune, chains, seed)
    with convergence_required("nothing was written; --allow-unconverged would save it, marked"):
        result = fit_runs(
            frame, **options, progress=shows_progress(quiet), allow_unconverged=allow_unconverged
        )
    note_failed_checks(result)
    with writing(output):
        result.save(output)
    if not quiet:
        title = f"Law {result.info['law']}, {len(result.runs)} runs; published units"
        show(result.summary(), title=title, warnings=marks_of(result))
    say(f"wrote {output}.")
    if not result.diagnostics.converged:
        raise NotConverged(f"{why_unconverged(result)}; it was saved as asked, and is marked.")


def backtest(
    runs: Runs,
    train: Annotated[str, typer.Option(help="Condition on the runs that are fitted.")],
    test: Annotated[str, typer.Option(help="Condition on the runs that are forecast.")],
    output: Output = None,
    by: By = None,
    law: Law = "rectified",
    factors: Factors = None,
    data: Data = "finetune_examples",
    cell: Cell = None,
    curve: Curve = "base_model",
    where: Where = None,
    priors: Priors = "weak",
    draws: Draws = None,
    tune: Tune = None,
    chains: Chains = None,
    seed: Seed = 0,
    allow_unconverged: Unconverged = False,
    quiet: Quiet = False,
    plot: Plot = None,
) -> None:
    """Fit some runs, forecast the others, and score the forecasts by what those reached."""
    from tunecast.analysis.targets import split
    from tunecast.models import backtest as backtest_runs

    check_output(output)
    check_output(plot, PICTURE_SUFFIXES)
    frame = checked_runs(runs, where)
    options = fit_options(law, factors, data, cell, curve, priors, draws, tune, chains, seed)
    with convergence_required("nothing was scored; --allow-unconverged would score it, marked"):
        scores = backtest_runs(
            frame,
            train=train,
            test=test,
            by=split(by),
            **options,
            progress=shows_progress(quiet),
            allow_unconverged=allow_unconverged,
        )
    put_scores(scores, output, plot)
    if not scores["converged"].all():
        raise NotConverged("the fit did not converge; its scores are marked.")
