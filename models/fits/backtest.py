"""How good a fit of some runs is at forecasting others that it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.fits.fit import fit
from tunecast.models.hierarchy.table import usable
from tunecast.models.questions.forecaster import marked, misfits_at
from tunecast.models.questions.scoring import positions_by_group, score_draws
from tunecast.models.runs import read_runs, where


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
    data = options.get("data", "finetune_examples")
    factors, labels = options.get("factors") or (), options.get("cell") or ()
    frame = read_runs(runs, columns=(*factors, data), labels=labels)
    inside, outside = where(frame, train), usable(where(frame, test), data)
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
    groups = outside[list(by)].astype(str) if by else None
    scores = score_draws(result.draws(outside), outside["loss"].to_numpy(float), groups)
    at = misfits_at(result, outside)
    rows = positions_by_group(len(outside), groups)
    return marked(scores, result, [[m for i in rows[g] for m in at[i]] for g in scores["group"]])
