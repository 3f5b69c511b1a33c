"""Short fits of what was bought so far, for benchmarks that refit after every choice.

The model of `tunecast.models.fit`, with fewer draws, longer steps, no retry, and no refusal of
tables that are too thin for a law: a plan may start from runs of one model size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tunecast.models.fits import Fit, Member
from tunecast.models.inference import question_of, sample
from tunecast.models.layout import lay_out
from tunecast.models.priors import WEAK

TARGET_ACCEPT = 0.9  # a third faster than the fits of `tunecast.models`, for as many draws


def cheapest(costs: np.ndarray, number: int) -> np.ndarray:
    """Return which runs are the cheapest, as booleans."""
    chosen = np.zeros(len(costs), dtype=bool)
    chosen[np.argsort(costs, kind="stable")[:number]] = True
    return chosen


def fit_rows(
    runs: pd.DataFrame,
    ask: dict[str, Any],
    *,
    seed: int,
    target_accept: float = TARGET_ACCEPT,
    draws: int,
    tune: int,
    chains: int,
) -> Fit:
    """Return a fit of the rows; ``ask`` goes to `question_of`, the others to `sample`."""
    runs = runs.reset_index(drop=True)
    question = question_of(runs, **ask)
    layout = lay_out(runs, question, thin=True)
    posterior, diagnostics = sample(
        layout, WEAK, draws=draws, tune=tune, chains=chains, seed=seed, retry=False,
        target_accept=target_accept,
    )  # fmt: skip
    info = {
        "seed": seed,
        "simulated": False,
        "law": question.law,
        "data": question.data,
        "cell": list(question.cell),
        "curve": question.curve,
        "factors": list(question.factors),
    }
    return Fit((Member(layout, WEAK, posterior, 1.0),), runs, info, diagnostics)
