"""Scores of forecasts against runs that have landed: proper scores and interval coverage.

All on log loss, so that tasks with high and low losses count alike.

References
----------
.. [1] Gneiting and Raftery 2007, Strictly Proper Scoring Rules, eq. 20 (CRPS).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.hierarchy.predict import Draws
from tunecast.models.questions.forecaster import QUANTILES

COVERAGES = (0.5, 0.8, 0.9, 0.95)
BAND = 0.95  # probability of the binomial band around a nominal coverage


def crps(draws: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Return the continuous ranked probability score of an ensemble, shape (n,).

    Parameters
    ----------
    draws : ndarray, shape (draws, n)
        Predictive draws.
    observed : ndarray, shape (n,)
        What happened, in the same unit.
    """
    n = len(draws)
    ordered = np.sort(draws, axis=0)
    weight = 2 * np.arange(1, n + 1) - n - 1
    spread = (weight[:, None] * ordered).sum(axis=0) / n**2
    return np.abs(draws - observed).mean(axis=0) - spread


def score_draws(
    draws: Draws, observed: np.ndarray, groups: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return the scores of posterior predictive draws, over all rows and by group.

    Parameters
    ----------
    draws : Draws
        For n targets. The log score is exact: the log of their mixture density.
    observed : ndarray, shape (n,)
        Losses reached, in nats.
    groups : DataFrame of n rows, optional
        Each column is scored by its levels.

    Returns
    -------
    DataFrame
        Columns ``group, n, crps, rmse, bias, log_score, cover50 ... cover95`` and, for each
        coverage, the band that a calibrated forecast of independent rows stays in with
        probability 0.95.
    """
    y = np.log(observed)
    return score_ensemble(np.log(draws.loss), y, draws.log_density(y), groups)


def score_ensemble(
    log_draws: np.ndarray,
    log_observed: np.ndarray,
    log_density: np.ndarray,
    groups: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return the scores of any ensemble of log losses; see `score_draws`.

    Parameters
    ----------
    log_draws : ndarray, shape (draws, n)
        Predictive draws of log losses.
    log_observed : ndarray, shape (n,)
        Log losses reached.
    log_density : ndarray, shape (n,)
        Log predictive density of each.
    groups : DataFrame of n rows, optional
        Each column is scored by its levels.
    """
    x, y = log_draws, log_observed
    each: dict[str, np.ndarray] = {
        "crps": crps(x, y), "error": x.mean(axis=0) - y, "log_score": log_density
    }  # fmt: skip
    for nominal in COVERAGES:
        low, high = np.quantile(x, [(1 - nominal) / 2, (1 + nominal) / 2], axis=0)
        each[_cover(nominal)] = (low <= y) & (y <= high)
    return _by_group(pd.DataFrame(each), groups)


_QUANTILES = {q: f"loss_q{round(100 * q):02d}" for q in QUANTILES}


def matched(forecasts: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each pair of a forecast and a run of it: the forecast and ``loss``.

    They match on every identifying column that both tables have (task, method, base_model,
    model_size, pretrain_tokens, pet_params, finetune_examples).

    Raises
    ------
    TunecastError
        When a needed column is missing, or no run matches.
    """
    missing = [c for c in (*_QUANTILES.values(), "loss_mean", "loss_sd") if c not in forecasts]
    if missing:
        raise TunecastError(
            f"the forecast table lacks {missing}: expected the output of a forecast"
        )
    names = ["task", "method", "base_model", "model_size", "pretrain_tokens", "pet_params"]
    names += ["finetune_examples"]
    keys = [
        c
        for c in names
        if c in forecasts and c in runs and forecasts[c].notna().all() and runs[c].notna().all()
    ]
    if not {"task", "method"} <= set(keys):
        raise TunecastError("forecasts and runs share no complete columns 'task' and 'method'")
    done = runs[runs["status"] == "done"] if "status" in runs else runs
    left = forecasts.drop(columns=[c for c in ("loss", "loss_se") if c in forecasts])
    both = left.merge(done[[*keys, "loss"]], on=keys, how="inner")
    if both.empty:
        raise TunecastError(f"no run matches a forecast on {', '.join(keys)}")
    return both


def score_table(
    forecasts: pd.DataFrame, runs: pd.DataFrame, by: Sequence[str] = ()
) -> pd.DataFrame:
    """Return the scores of a forecast table against the runs that have landed since.

    Forecasts meet runs as in `matched`. From five quantiles the CRPS is the pinball loss averaged
    over them, doubled, and coverage exists at 50 and 90 % alone; the log score is that of a normal
    with the forecast's mean and standard deviation.

    Raises
    ------
    TunecastError
        When a needed column is missing, or no run matches.
    """
    both = matched(forecasts, runs)
    for name in by:
        if name not in both:
            raise TunecastError(f"the forecast table lacks the column '{name}' to score by")
    y = np.log(both["loss"].to_numpy(float))
    mean, sd = both["loss_mean"].to_numpy(float), both["loss_sd"].to_numpy(float)
    pinball = []
    for level, column in _QUANTILES.items():
        gap = y - np.log(both[column].to_numpy(float))
        pinball.append(2 * np.maximum(level * gap, (level - 1) * gap))
    z = (both["loss"].to_numpy(float) - mean) / sd
    each = {
        "crps": np.mean(pinball, axis=0),
        "error": np.log(both["loss_q50"].to_numpy(float)) - y,
        # d log L = dL / L turns the density of the loss into that of its logarithm.
        "log_score": -0.5 * (z * z + np.log(2 * np.pi)) - np.log(sd) + y,
        "cover50": both["loss"].between(both["loss_q25"], both["loss_q75"]).to_numpy(),
        "cover90": both["loss"].between(both["loss_q05"], both["loss_q95"]).to_numpy(),
    }
    return _by_group(pd.DataFrame(each), both[list(by)] if by else None)


def _cover(nominal: float) -> str:
    return f"cover{round(100 * nominal)}"


def positions_by_group(rows: int, groups: pd.DataFrame | None) -> dict[str, np.ndarray]:
    """Return the positions of all rows and of those of each group, by the names that scores have.

    Parameters
    ----------
    rows : int
        How many there are.
    groups : DataFrame of as many rows, optional
        Each column makes groups of its own, named ``column=level``.

    Examples
    --------
    >>> import pandas as pd
    >>> found = positions_by_group(3, pd.DataFrame({"task": ["a", "b", "a"]}))
    >>> {name: positions.tolist() for name, positions in found.items()}
    {'all': [0, 1, 2], 'task=a': [0, 2], 'task=b': [1]}
    """
    found = {"all": np.arange(rows)}
    if groups is not None:
        for column, values in groups.items():
            for level, own in values.groupby(values).indices.items():
                found[f"{column}={level}"] = np.asarray(own)
    return found


def _by_group(each: pd.DataFrame, groups: pd.DataFrame | None) -> pd.DataFrame:
    found = positions_by_group(len(each), groups)
    return pd.DataFrame(
        [{"group": name, **_summary(each.iloc[own])} for name, own in found.items()]
    )


def _summary(each: pd.DataFrame) -> dict[str, float]:
    from scipy.stats import binom

    n = len(each)
    row = {
        "n": n,
        "crps": each["crps"].mean(),
        "rmse": float(np.sqrt((each["error"] ** 2).mean())),
        "bias": each["error"].mean(),
        "log_score": each["log_score"].mean(),
    }
    for nominal in COVERAGES:
        name = _cover(nominal)
        if name in each:
            low, high = binom.interval(BAND, n, nominal)
            row |= {name: each[name].mean(), f"{name}_low": low / n, f"{name}_high": high / n}
    return row
