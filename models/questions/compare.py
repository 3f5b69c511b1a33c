"""Which method has the lowest expected loss, with what probability."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.questions.forecaster import Forecaster, check_method, marked, methods_of


def compare(
    fit: Forecaster,
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
    fit : Forecaster
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
    methods = list(dict.fromkeys(methods)) if methods else methods_of(fit)
    for method in methods:
        check_method(fit, method)
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
    return marked(pd.DataFrame(rows), fit)
