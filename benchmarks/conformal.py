"""Split-conformal intervals around any forecaster's median."""

from __future__ import annotations

import numpy as np
import pandas as pd
from baselines import Array, Fallback, Forecaster

PROPER = 0.7  # share of the training runs that are fitted; the others calibrate
LEAST = 9  # residuals without which no 90 % interval is finite


def split_conformal(forecaster: Forecaster) -> Forecaster:
    """Return a forecaster whose intervals are those of split-conformal prediction.

    The forecaster is fitted to a random 70 % of the training runs. The absolute residuals of log
    loss on the others, of all groups together, give the intervals around its median: half the
    width of a central interval of probability q is the ceil((n + 1) q)-th smallest of the n. Where
    that is beyond the largest, the largest it is: the interval should be infinite.

    The draws are quantiles of the distribution with these intervals, the same in every run.
    """

    def forecast(
        train: pd.DataFrame,
        test: pd.DataFrame,
        *,
        seed: int,
        draws: int = 400,
        fallbacks: list[Fallback] | None = None,
    ) -> Array:
        usable = train[train["finetune_examples"] > 0]
        order = np.random.default_rng(seed).permutation(len(usable))
        proper = usable.iloc[order[: round(PROPER * len(usable))]]
        aside = usable.iloc[order[len(proper) :]]
        if len(aside) < LEAST:
            raise ValueError(
                f"{len(aside)} runs to calibrate with are too few: a 90 % interval needs {LEAST}"
            )
        asked = pd.concat([aside, test], ignore_index=True)
        found = forecaster(proper, asked, seed=seed, draws=draws, fallbacks=[])
        centre = np.median(np.log(found), axis=0)
        observed = np.log(aside["loss"].to_numpy(float))
        residuals = np.sort(np.abs(observed - centre[: len(aside)]))
        level = (np.arange(draws // 2) + 0.5) / (draws // 2)
        rank = np.ceil((len(residuals) + 1) * level).astype(int)
        half = residuals[np.minimum(rank, len(residuals)) - 1]
        if fallbacks is not None:
            # Those of the calibration runs are of no interest.
            forecaster(proper, test, seed=seed, draws=2, fallbacks=fallbacks)
        return np.exp(centre[len(aside) :] + np.r_[-half, half][:, None])

    return forecast
