"""The questions that a fit answers: forecast, compare, crossover, backtest. Tables in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.runs import read_runs, where
from tunecast.models.scoring import score_draws

if TYPE_CHECKING:
    from tunecast.models.fits import Fit

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def forecast(fit: Fit, targets: pd.DataFrame, *, seed: int | None = None) -> pd.DataFrame:
    """Return the targets with what a run is forecast to reach there.

    Parameters
    ----------
    fit : Fit
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
        expected_q95`` of its mean; ``extrapolation``, how many times beyond the data the target
        lies; ``converged``; and ``simulated`` for a fit of simulated runs.

    Raises
    ------
    TunecastError
        When the targets are at fault.
    """
    draws = fit.draws(targets, seed=seed)
    table = targets.reset_index(drop=True).copy()
    table["loss_mean"] = draws.loss.mean(axis=0)
    table["loss_sd"] = draws.loss.std(axis=0)
    for q, values in zip(QUANTILES, np.quantile(draws.loss, QUANTILES, axis=0), strict=True):
        table[f"loss_q{round(100 * q):02d}"] = values
    ends = (0.05, 0.5, 0.95)
    for q, values in zip(ends, np.quantile(draws.expected, ends, axis=0), strict=True):
        table[f"expected_q{round(100 * q):02d}"] = values
    table["extrapolation"] = draws.extrapolation
    return _marked(table, fit)


def _marked(table: pd.DataFrame, fit: Fit) -> pd.DataFrame:
    table["converged"] = fit.diagnostics.converged
    if fit.info.get("simulated"):
        table["simulated"] = True
    return table


def methods_of(fit: Fit) -> list[str]:
    """Return the methods in the runs of a fit."""
    return sorted(fit.runs["method"].astype(str).unique())


def compare(
    fit: Fit,
    targets: pd.DataFrame,
    *,
    methods: Sequence[str] | None = None,
    seed: int | None = None,
) -> pd.DataFrame:
    """Return, for each target and method, the probability that it reaches the lowest loss.

    Losses are expected ones (a method is not better for a lucky run). Draws are paired: the same
    draw of a base model's effect serves every method at a target.

    Parameters
    ----------
    fit : Fit
        A fit.
    targets : DataFrame
        As for `forecast`; a ``method`` column is ignored.
    methods : sequence of str, optional
        The methods to compare; all in the runs unless given.

    Returns
    -------
    DataFrame
        Target columns, ``method, p_best, expected_regret`` (nats lost on average by choosing the
        method instead of the best), ``p_beats_<other>``, ``expected_q05 ... q95``.

    Raises
    ------
    TunecastError
        When fewer than two methods are named, or one is unknown.
    """
    known = methods_of(fit)
    methods = list(dict.fromkeys(methods)) if methods else known
    for method in methods:
        if method not in known:
            raise TunecastError(f"unknown method '{method}': the runs have {', '.join(known)}")
    if len(methods) < 2:
        raise TunecastError(
            f"comparing takes two methods or more, got {', '.join(methods) or 'none'}"
        )
    plain = targets.drop(columns="method", errors="ignore").drop_duplicates().reset_index(drop=True)
    stacked = pd.concat([plain.assign(method=m) for m in methods], ignore_index=True)
    draws = fit.draws(stacked, seed=seed)
    n = len(plain)
    losses = draws.expected.reshape(len(draws.expected), len(methods), n)
    best = losses.min(axis=1)
    winner = losses.argmin(axis=1)
    rows = []
    for i in range(n):
        for j, method in enumerate(methods):
            own = losses[:, j, i]
            row = {**plain.iloc[i].to_dict(), "method": method}
            row["p_best"] = float((winner[:, i] == j).mean())
            row["expected_regret"] = float((own - best[:, i]).mean())
            for k, other in enumerate(methods):
                p = float((own < losses[:, k, i]).mean()) if k != j else np.nan
                row[f"p_beats_{other}"] = p
            low, mid, high = np.quantile(own, [0.05, 0.5, 0.95])
            row |= {"expected_q05": low, "expected_q50": mid, "expected_q95": high}
            row["extrapolation"] = float(draws.extrapolation[j * n + i])
            rows.append(row)
    return _marked(pd.DataFrame(rows), fit)


def crossover(
    fit: Fit,
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
    known = methods_of(fit)
    for method in (a, b):
        if method not in known:
            raise TunecastError(f"unknown method '{method}': the runs have {', '.join(known)}")
    if a == b:
        raise TunecastError(f"a crossover takes two different methods, got '{a}' twice")
    tasks = sorted(fit.runs["task"].astype(str).unique())
    if task is None:
        if len(tasks) > 1:
            raise TunecastError(f"name a task: one of {', '.join(tasks)}, or a new one")
        task = tasks[0]
    data = fit.question.data
    sizes = fit.runs.loc[fit.runs["task"] == task, data] if task in tasks else fit.runs[data]
    low = float(sizes.min()) / 10 if low is None else low
    high = float(sizes.max()) * 10 if high is None else high
    if not 0 < low < high:
        raise TunecastError(f"the range of {data} is {low:g} to {high:g}, expected 0 < low < high")
    grid = np.geomspace(low, high, points)
    base = pd.DataFrame({"task": task, "base_model": base_model, data: grid, **factors})
    base = base.rename(columns={"base_model": fit.question.curve})
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
    return _marked(pd.DataFrame([row]), fit)


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


def backtest(
    runs: Any,
    *,
    train: str,
    test: str,
    by: Sequence[str] = (),
    **options: Any,
) -> pd.DataFrame:
    """Return the scores of a fit on some rows for others that it never saw.

    Parameters
    ----------
    runs : DataFrame, path, or name of an embedded table
        The table.
    train, test : str
        Expressions that choose rows, such as ``"finetune_examples <= 25600"``.
    by : sequence of str
        Columns whose levels are scored apart too.
    **options
        Passed to `tunecast.models.fit`.

    Raises
    ------
    TunecastError
        When a split is empty, or the two overlap.
    """
    from tunecast.models.inference import fit, usable

    factors = options.get("factors") or ()
    data = options.get("data", "finetune_examples")
    frame = read_runs(runs, columns=(*factors, data), labels=[*(options.get("cell") or ())])
    inside, outside = where(frame, train), where(frame, test)
    outside, _ = usable(outside, data, factors)
    if inside.empty or outside.empty:
        which = "train" if inside.empty else "test"
        raise TunecastError(f"no usable row satisfies the {which} expression")
    both = set(inside["run_id"]) & set(outside["run_id"])
    if both:
        raise TunecastError(
            f"{len(both)} rows are in train and in test, such as '{min(both)}': "
            "a score on rows that were fitted says nothing"
        )
    for name in by:
        if name not in outside:
            raise TunecastError(f"the table lacks the column '{name}' to score by")
    result = fit(inside, **options)
    draws = result.draws(outside)
    groups = outside[list(by)].astype(str) if by else None
    scores = score_draws(draws.loss, outside["loss"].to_numpy(float), groups)
    return _marked(scores, result)


def targets_grid(
    tasks: Sequence[str], methods: Sequence[str], **values: Sequence[Any]
) -> pd.DataFrame:
    """Return every combination of tasks, methods and the other columns' values, as targets."""
    columns: Mapping[str, Sequence[Any]] = {"task": tasks, "method": methods, **values}
    index = pd.MultiIndex.from_product(list(columns.values()), names=list(columns))
    return index.to_frame(index=False)
