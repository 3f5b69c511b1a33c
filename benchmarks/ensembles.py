"""Scores of forecasters that have samples of a loss and no density of it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tunecast.models.questions.scoring import score_ensemble


def score_samples(
    draws: np.ndarray, observed: np.ndarray, groups: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return the scores of samples of losses, shape (draws, n); see `score_ensemble`."""
    x, y = np.log(draws), np.log(observed)
    return score_ensemble(x, y, kernel_log_density(x, y), groups)


def kernel_log_density(draws: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Return the log predictive density at the observation, shape (n,), higher is better.

    The density is a Gaussian kernel estimate with Silverman's bandwidth, mixed with a wide normal
    of weight 1/1000 so that one observation outside the draws costs a bounded amount.
    """
    n = len(draws)
    sd = draws.std(axis=0) + 1e-12
    low, high = np.quantile(draws, [0.25, 0.75], axis=0)
    width = 0.9 * np.minimum(sd, (high - low) / 1.34 + 1e-12) * n**-0.2
    kernel = normal_pdf((draws - observed) / width) / width
    far = normal_pdf((observed - draws.mean(axis=0)) / (5 * sd)) / (5 * sd)
    return np.log(0.999 * kernel.mean(axis=0) + 0.001 * far + 1e-300)


def normal_pdf(z: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
