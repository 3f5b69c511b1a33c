"""Short fits of what was bought so far, for benchmarks that refit after every choice.

The model of `tunecast.models.fit`, with fewer draws, longer steps, no retry, and no refusal of
tables that are too thin for a law: a plan may start from runs of one model size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tunecast.models import Fit
from tunecast.models.hierarchy.priors import WEAK
from tunecast.models.hierarchy.table import index_runs, spec_of
from tunecast.models.inference.posterior import Posterior
from tunecast.models.inference.sampling import sample

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
    """Return a fit of the rows; ``ask`` goes to `spec_of`, the others to `sample`."""
    runs = runs.reset_index(drop=True)
    spec = spec_of(runs, **ask)
    table = index_runs(runs, spec, check=False)
    found = sample(
        table, WEAK, draws=draws, tune=tune, chains=chains, seed=seed, retry=False,
        target_accept=target_accept,
    )  # fmt: skip
    info = {
        "seed": seed,
        "simulated": False,
        "law": spec.law,
        "data": spec.data,
        "cell": list(spec.cell),
        "curve": spec.curve,
        "factors": list(spec.factors),
    }
    posterior = Posterior(table, WEAK, found.draws, found.statistics)
    return Fit((posterior,), runs, info, found.diagnostics)
