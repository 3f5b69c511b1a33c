"""What a run that was not made would reach."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tunecast.models.questions.forecaster import QUANTILES, Forecaster, marked


def forecast(fit: Forecaster, targets: pd.DataFrame, *, seed: int | None = None) -> pd.DataFrame:
    """Return the targets with what a run is forecast to reach there.

    Parameters
    ----------
    fit : Forecaster
        A fit.
    targets : DataFrame
        One row each: task, method, base model (empty: unseen), factors, data size.
    seed : int, optional
        The fit's own unless given.

    Returns
    -------
    DataFrame
        The targets' columns and, in nats per target token, ``loss_mean, loss_sd, loss_q05,
        loss_q25, loss_q50, loss_q75, loss_q95`` of a new run, ``expected_q05, expected_q50,
        expected_q95`` without run noise; ``extrapolation``, how many times beyond the data the
        target lies; ``converged``; ``simulated`` for a fit of simulated runs; and ``misfit``, which
        checks of the fit fail where the target lies, if any does.

    Raises
    ------
    TunecastError
        When the targets are at fault.
    """
    draws = fit.draws(targets, seed=seed)
    table = targets.reset_index(drop=True).copy()
    table["loss_mean"] = draws.loss.mean(axis=0)
    with np.errstate(over="ignore"):  # infinite, where a draw ran away: a law far below its data
        table["loss_sd"] = draws.loss.std(axis=0)
    for q, values in zip(QUANTILES, np.quantile(draws.loss, QUANTILES, axis=0), strict=True):
        table[f"loss_q{round(100 * q):02d}"] = values
    ends = (0.05, 0.5, 0.95)
    for q, values in zip(ends, np.quantile(draws.expected, ends, axis=0), strict=True):
        table[f"expected_q{round(100 * q):02d}"] = values
    table["extrapolation"] = draws.extrapolation
    return marked(table, fit)
