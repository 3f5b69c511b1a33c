"""Weights of the laws: stacking of predictive distributions by leave-future-out score.

The largest data sizes of each cell are set aside *inside* the training rows; each law is fitted
to the rest and forecasts them. The weights maximise the log score of the mixture of those
forecasts (Yao et al. 2018, arXiv:1704.02030), which asks of a law what a user asks: to
extrapolate. Then every law in use is fitted to all training rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.hierarchy.priors import Priors
from tunecast.models.hierarchy.table import index_runs, spec_of
from tunecast.models.hierarchy.targets import check_targets
from tunecast.models.inference.diagnostics import Diagnostics, worst
from tunecast.models.inference.posterior import Posterior
from tunecast.models.inference.sampling import sample
from tunecast.models.laws import LAWS

SET_ASIDE = 1 / 3  # of the distinct data sizes of each cell
LEAST_WEIGHT = 0.01


def split_future(runs: pd.DataFrame, cell: tuple[str, ...], data: str) -> pd.Series:
    """Return which rows are set aside: the largest third of each cell's data sizes.

    Three sizes at least stay, else a cell sets none aside.
    """
    future = pd.Series(False, index=runs.index)
    for _, rows in runs.groupby(list(cell), sort=False):
        sizes = np.sort(rows[data].unique())
        n = min(max(1, round(SET_ASIDE * len(sizes))), len(sizes) - 3)
        if n > 0:
            future.loc[rows.index] = rows[data] >= sizes[-n]
    return future


def stacking_weights(log_densities: np.ndarray, steps: int = 2000) -> np.ndarray:
    """Return the weights, shape (laws,), that maximise the mixture's log score.

    Parameters
    ----------
    log_densities : ndarray, shape (rows, laws)
        Log predictive density of each row under each law.
    steps : int
        Steps of expectation-maximisation, which never lowers the score.
    """
    density = np.exp(log_densities - log_densities.max(axis=1, keepdims=True))
    weights = np.full(density.shape[1], 1 / density.shape[1])
    for _ in range(steps):
        share = density * weights
        weights = (share / share.sum(axis=1, keepdims=True)).mean(axis=0)
    return weights


def stacked(
    runs: pd.DataFrame,
    ask: Mapping[str, Any],
    priors: Priors,
    options: Mapping[str, int],
    progress: bool,
    retry: bool,
) -> tuple[tuple[Posterior, ...], Diagnostics, dict[str, float]]:
    """Return the laws in use with weights, the worst diagnostics, and each law's mean log score.

    Raises
    ------
    TunecastError
        When no cell has four data sizes, so that nothing can be set aside.
    """
    specs = {law: spec_of(runs, law=law, **ask) for law in LAWS}
    first = next(iter(specs.values()))
    future = split_future(runs, first.cell, first.data)
    if not future.any():
        raise TunecastError(
            "law 'auto' sets the largest data sizes aside to weigh the laws, which takes a cell "
            "with four data sizes or more: name a law instead"
        )
    past, later = runs[~future].reset_index(drop=True), runs[future].reset_index(drop=True)
    columns = []
    for spec in specs.values():
        table = index_runs(past, spec)
        chains = sample(table, priors, **options, progress=progress, retry=False)
        predictor = Posterior(table, priors, chains.draws).predictor(options["seed"])
        draws = predictor.draws(check_targets(later, table))
        columns.append(draws.log_density(np.log(later["loss"].to_numpy(float))))
    weights = stacking_weights(np.array(columns).T)
    scores = {law: float(c.mean()) for law, c in zip(specs, columns, strict=True)}
    weights = np.where(weights < LEAST_WEIGHT, 0, weights)
    weights = weights / weights.sum()
    posteriors, found = [], []
    for spec, weight in zip(specs.values(), weights, strict=True):
        if weight == 0:
            continue
        table = index_runs(runs, spec)
        chains = sample(table, priors, **options, progress=progress, retry=retry)
        posteriors.append(Posterior(table, priors, chains.draws, chains.statistics, float(weight)))
        found.append(chains.diagnostics)
    return tuple(posteriors), worst(found), scores
