"""What candidate runs cost: given, fitted to what earlier runs cost, or 6ND."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.planning.fitted import FittedModel

FLOP_PER_TOKEN = 6  # and parameter, forward and backward: Kaplan et al. 2020, arXiv:2001.08361
MEASURED_COSTS = ("gpu_seconds", "train_flops")  # columns of a run table, the first one preferred
ENOUGH_RUNS = 3  # with a measured cost, to fit costs to


def candidate_costs(
    fit: FittedModel,
    completed: pd.DataFrame,
    candidates: pd.DataFrame,
    how: str | None,
    tokens_per_example: float,
) -> tuple[np.ndarray, str]:
    """Return the cost of each candidate, all its replicates together, and where it comes from.

    Parameters
    ----------
    fit : FittedModel
        What is known.
    completed, candidates : DataFrame
        The candidates as `complete_candidates` returns them, and as they were given.
    how : str, optional
        A column of the candidates, one of `MEASURED_COSTS`, or "6ND"; the first that there is
        unless given.
    tokens_per_example : float
        For "6ND".

    Raises
    ------
    TunecastError
        When the costs asked for cannot be had, or one is not a number above 0.
    """
    if how is None:
        measured = [c for c in MEASURED_COSTS if len(_runs_with_cost(fit, c)) >= ENOUGH_RUNS]
        how = "cost" if "cost" in candidates else measured[0] if measured else "6ND"
    if how == "6ND":
        costs, source = _flop(fit.spec.data, completed, tokens_per_example)
    elif how in candidates:
        costs = pd.to_numeric(candidates[how], errors="coerce").to_numpy(float)
        source = f"the candidates' column '{how}'"
    elif how in MEASURED_COSTS:
        costs, source = _regressed_costs(fit, completed, how)
    else:
        raise TunecastError(
            f"unknown cost '{how}': expected a column of the candidates, "
            f"{', '.join(MEASURED_COSTS)} or 6ND"
        )
    bad = ~(costs > 0) | np.isinf(costs)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        value = "missing" if np.isnan(costs[row]) else f"{costs[row]:g}"
        raise TunecastError(
            f"the cost of candidate {row + 1} is {value}: expected a number above 0 for each"
        )
    return costs * completed["replicates"].to_numpy(float), source


def checked_budget(budget: float | None, costs: np.ndarray) -> float:
    """Return the budget, infinity if there is none.

    Raises
    ------
    TunecastError
        When it pays for no candidate.
    """
    if budget is None:
        return float("inf")
    if not budget >= costs.min():
        raise TunecastError(
            f"the budget {budget:g} is below the cheapest candidate, which costs {costs.min():g}"
        )
    return float(budget)


def _flop(data: str, completed: pd.DataFrame, tokens_per_example: float) -> tuple[np.ndarray, str]:
    if "model_size" not in completed:
        raise TunecastError(
            "the candidates have neither a cost nor a model_size to compute one from: "
            "add a column 'cost'"
        )
    tokens = completed[data].to_numpy(float) * tokens_per_example
    costs = FLOP_PER_TOKEN * completed["model_size"].to_numpy(float) * tokens
    return costs, (
        f"{FLOP_PER_TOKEN} x model_size x {data} x {tokens_per_example:g} tokens, in FLOP"
    )


def _runs_with_cost(fit: FittedModel, column: str) -> pd.DataFrame:
    if column not in fit.runs or "model_size" not in fit.runs:
        return fit.runs.iloc[:0]
    values = pd.to_numeric(fit.runs[column], errors="coerce")
    return fit.runs[(values > 0) & np.isfinite(values)]


def _regressed_costs(
    fit: FittedModel, completed: pd.DataFrame, column: str
) -> tuple[np.ndarray, str]:
    """Regress log cost on log sizes, with a level for each method.

    What the runs do not vary gets the exponent 1 of 6ND.
    """
    data, known = fit.spec.data, _runs_with_cost(fit, column)
    if len(known) < ENOUGH_RUNS or "model_size" not in completed:
        raise TunecastError(
            f"costs cannot be fitted to '{column}': the fit has {len(known)} runs that tell it, "
            "and three with their model_size are needed"
        )
    names = ("model_size", data)
    y = np.log(known[column].to_numpy(float))
    x = {n: np.log(known[n].to_numpy(float)) for n in names}
    varied = [n for n in names if np.ptp(x[n]) > 0]
    rest = y - sum((x[n] for n in names if n not in varied), np.zeros(len(y)))
    levels = sorted(known["method"].astype(str).unique())
    dummies = np.array(known["method"].astype(str))[:, None] == np.array(levels)
    matrix = np.column_stack([dummies.astype(float), *(x[n] for n in varied)])
    solved = np.linalg.lstsq(matrix, rest, rcond=None)[0]
    level = dict(zip(levels, solved, strict=False))
    exponent = dict.fromkeys(names, 1.0) | dict(zip(varied, solved[len(levels) :], strict=True))
    # A method without runs gets the mean of those with some.
    usual = float(np.mean(list(level.values())))
    log_cost = completed["method"].map(level).fillna(usual).to_numpy()
    for n in names:
        log_cost = log_cost + exponent[n] * np.log(completed[n].to_numpy(float))
    typical_error = float(np.exp(np.sqrt(np.mean((rest - matrix @ solved) ** 2))))
    powers = " x ".join(f"{n}^{exponent[n]:.2f}" for n in names)
    return np.exp(log_cost), (
        f"{column} ~ {powers} by method, fitted to {len(known)} runs, "
        f"typically within {typical_error:.2g} x"
    )
