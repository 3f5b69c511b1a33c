"""Normal scores: draws by their ranks, as quantiles of a standard normal.

Mutual information is the same for any increasing function of a quantity, so estimators that are
exact for jointly normal quantities serve whatever margins there are: only the copula is taken for
a normal one, which makes a lower bound of the information [1]_.

References
----------
.. [1] Ince et al. 2017, A Statistical Framework for Neuroimaging Data Analysis Based on Mutual
   Information Estimated via a Gaussian Copula, section 3.
"""

from __future__ import annotations

import numpy as np
import scipy  # its parts are imported when they are used, which keeps start-up short


def normal_scores(values: np.ndarray) -> np.ndarray:
    """Return each column's ranks as quantiles of a standard normal, shape as ``values``."""
    order = values.argsort(axis=0).argsort(axis=0)
    n = len(values)
    # A column without spread has no ranks to speak of.
    spread = values.max(axis=0) > values.min(axis=0)
    return np.where(spread, scipy.special.ndtri((order + 0.5) / n), 0.0)


def score_unit(values: np.ndarray) -> np.ndarray:
    """Return how much one unit of the normal scores is in each column, shape (columns,).

    Locally that is the slope of the quantile function; of it, the geometric mean over draws. This
    mean is what the entropies of a column and of its scores differ by; for normal draws it is the
    standard deviation.
    """
    n = len(values)
    step = max(1, n // 50)
    score = scipy.special.ndtri((np.arange(n) + 0.5) / n)
    ordered = np.sort(values, axis=0)
    slope = (ordered[step:] - ordered[:-step]) / (score[step:] - score[:-step])[:, None]
    # The logarithm of a sum of spacings, which is Gamma distributed, is low by as much.
    bias = scipy.special.digamma(step) - np.log(step)
    return np.exp(np.log(np.maximum(slope, 1e-9)).mean(axis=0) - bias)
