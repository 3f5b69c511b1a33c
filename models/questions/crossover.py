"""At which data size the better one of two methods changes, if it does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.questions.forecaster import (
    QUANTILES,
    Forecaster,
    check_method,
    marked,
    misfits_at,
)


def crossover(
    fit: Forecaster,
    a: str,
    b: str,
    *,
    task: str | None = None,
    base_model: str = "",
    low: float | None = None,
    high: float | None = None,
    points: int = 200,
    seed: int | None = None,
    **factors: float,
) -> pd.DataFrame:
    """Return how likely the two methods' expected losses cross, and at which data size first.

    Each posterior draw is one pair of curves; its crossings in the range are counted and the
    first is placed by linear interpolation in log data size.

    Parameters
    ----------
    a, b : str
        Methods.
    task : str, optional
        The task; may be left out when the runs have one.
    base_model : str
        A base model of the table; unseen when empty.
    low, high : float, optional
        Range of data sizes; ten times beyond the runs of the task on both sides unless given.
    points : int
        Grid points over the range.
    **factors
        Factor values, such as ``model_size=16e9``.

    Returns
    -------
    DataFrame
        One row: ``p_none, p_one, p_more`` (and ``p_two``), ``p_a_below_at_low,
        p_a_below_at_high``, quantiles ``first_q05 ... first_q95`` of the first crossing among
        draws that cross, and the range.

    Raises
    ------
    TunecastError
        When a method is unknown, the two are the same, or the range is empty.
    """
    for method in (a, b):
        check_method(fit, method)
    if a == b:
        raise TunecastError(f"a crossover takes two different methods, got '{a}' twice")
    tasks = sorted(fit.runs["task"].astype(str).unique())
    if task is None:
        if len(tasks) > 1:
            raise TunecastError(f"name a task: one of {', '.join(tasks)}, or a new one")
        task = tasks[0]
    data = fit.spec.data
    sizes = fit.runs.loc[fit.runs["task"] == task, data] if task in tasks else fit.runs[data]
    low = float(sizes.min()) / 10 if low is None else low
    high = float(sizes.max()) * 10 if high is None else high
    if not 0 < low < high:
        raise TunecastError(f"the range of {data} is {low:g} to {high:g}, expected 0 < low < high")
    grid = np.geomspace(low, high, points)
    base = pd.DataFrame({"task": task, "base_model": base_model, data: grid, **factors})
    base = base.rename(columns={"base_model": fit.spec.curve})
    both = pd.concat([base.assign(method=a), base.assign(method=b)], ignore_index=True)
    draws = fit.draws(both, seed=seed).expected
    gap = draws[:, :points] - draws[:, points:]
    count, first = crossings(np.log(grid), gap)
    row: dict[str, Any] = {"task": task, "a": a, "b": b, **factors, "base_model": base_model}
    row |= {
        "p_none": float((count == 0).mean()),
        "p_one": float((count == 1).mean()),
        "p_two": float((count == 2).mean()),
        "p_more": float((count > 2).mean()),
        "p_a_below_at_low": float((gap[:, 0] < 0).mean()),
        "p_a_below_at_high": float((gap[:, -1] < 0).mean()),
    }
    crossing = np.exp(first[count > 0])
    for q in QUANTILES:
        value = float(np.quantile(crossing, q)) if crossing.size else np.nan
        row[f"first_q{round(100 * q):02d}"] = value
    row |= {"low": low, "high": high}
    # The row holds both methods, and a misfit of either concerns it.
    at = misfits_at(fit, both.iloc[[0, points]])
    return marked(pd.DataFrame([row]), fit, [[*at[0], *at[1]]])


def crossings(x: np.ndarray, gap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each row of ``gap`` changes sign along ``x``, and where it first does.

    Parameters
    ----------
    x : ndarray, shape (points,)
        Increasing.
    gap : ndarray, shape (draws, points)
        Difference of two curves.

    Returns
    -------
    count : ndarray of int, shape (draws,)
    first : ndarray, shape (draws,)
        NaN where there is none.
    """
    sign = np.sign(gap)
    # A gap of exactly zero belongs to the side that it comes from.
    for j in range(1, sign.shape[1]):
        sign[:, j] = np.where(sign[:, j] == 0, sign[:, j - 1], sign[:, j])
    change = sign[:, 1:] * sign[:, :-1] < 0
    count = change.sum(axis=1)
    at = change.argmax(axis=1)
    rows = np.arange(len(gap))
    left, right = gap[rows, at], gap[rows, at + 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        first = x[at] + (x[at + 1] - x[at]) * left / (left - right)
    return count, np.where(count > 0, first, np.nan)
