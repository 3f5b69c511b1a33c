"""Monte Carlo estimates of expected information gain, with jackknife standard errors."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

JACKKNIFE_GROUPS = 10


@dataclass(frozen=True)
class GainEstimate:
    """An expected information gain in nats, and how well Monte Carlo knows it.

    Parameters
    ----------
    gain, mcse : float
        Mutual information and its Monte Carlo standard error; NaN where none was asked for.
    ess : float
        Effective number of posterior draws that an outcome leaves (the median over outcomes);
        NaN for an estimator without importance weights.
    """

    gain: float
    mcse: float
    ess: float = np.nan


def delete_group_folds(draws: int) -> list[np.ndarray]:
    """Return the draws that are left when each of `JACKKNIFE_GROUPS` is deleted in turn.

    Groups are consecutive, so that neighbouring draws of a chain may be alike.
    """
    edges = np.linspace(0, draws, JACKKNIFE_GROUPS + 1).astype(int)
    return [np.r_[0:low, high:draws] for low, high in itertools.pairwise(edges)]


def jackknife_error(estimates: np.ndarray) -> np.ndarray:
    """Return the standard error from the estimates of all folds, which the first axis counts."""
    return np.sqrt(np.var(estimates, axis=0) * (JACKKNIFE_GROUPS - 1))
