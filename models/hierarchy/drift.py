"""Slope drift: real curves wander away from every law as the data grow.

The slope of log loss per doubling of the data is a random walk, whose standard deviation after one
doubling is the drift's scale; so log loss is an integrated one. There is one walk for each task,
shared by its curves, and one of each curve.

Within the range of data sizes that was seen, a line is the law's part: level and slope of a walk
are those of the law, and the drift is what is left of it after a least-squares line over the
range. Its Karhunen-Loeve expansion has a closed form: with data sizes scaled to -1 to 1 the
eigenfunctions are the shapes of a freely vibrating beam, and the variance of the k-th coefficient
is ``1 / kappa_k^4``, so that the first two hold 95 % of all variance. The model samples those
(`basis`). Beyond the range a walk goes on from its end, with the slope that it has there
(`Continuation`).

References
----------
.. [1] Wahba 1978, Journal of the Royal Statistical Society B 40(3), for the integrated random walk
   as a prior of smooth curves.
.. [2] Freund and Hoberg 2015, Journal of Integral Equations and Applications 27(3), for the
   expansion of integrated random walks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tunecast.models.hierarchy.keyed import Keyed

TERMS = 2
# Roots of tan(kappa) = -tanh(kappa), for the even eigenfunction, and of tan(kappa) = tanh(kappa).
KAPPA = (2.3650203724313523, 3.9266023120479185)
# Slope of each eigenfunction at the end of -1 to 1.
SLOPES = (
    math.sqrt(2) * KAPPA[0] * math.tanh(KAPPA[0]),
    math.sqrt(2) * KAPPA[1] / math.tanh(KAPPA[1]),
)
# Variance of the slope there: of the whole drift, and of what the terms leave.
END_SLOPE = 26 / 35
REST_SLOPE = END_SLOPE - sum((s / k**2) ** 2 for s, k in zip(SLOPES, KAPPA, strict=True))

# Slope innovations come at this spacing in doublings; finer changes no forecast visibly.
KNOT = 0.25

type Innovation = Callable[[str, object, object], np.ndarray]


def eigenfunctions(x: np.ndarray) -> np.ndarray:
    """Return the first eigenfunctions of the drift over -1 to 1, and their lines beyond.

    Parameters
    ----------
    x : ndarray, shape (n,)
        Data sizes, on the log scale.

    Returns
    -------
    ndarray, shape (TERMS, n)
        Orthonormal over the range.
    """
    inside = np.clip(x, -1.0, 1.0)
    even, odd = KAPPA
    values = np.stack([
        np.cos(even * inside) / np.cos(even) + np.cosh(even * inside) / np.cosh(even),
        np.sin(odd * inside) / np.sin(odd) + np.sinh(odd * inside) / np.sinh(odd),
    ]) / np.sqrt(2)  # fmt: skip
    # The slope of the even one changes its sign with the side.
    return values + np.array(SLOPES)[:, None] * np.stack([np.abs(x - inside), x - inside])


def basis(at: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return by how much one unit of each coefficient of a drift moves log loss.

    A coefficient has the drift's scale as its standard deviation.

    Parameters
    ----------
    at : ndarray, shape (n,)
        Log2 of data sizes.
    low, high : ndarray, shape (n,)
        Log2 of the ends of the range that was seen; where they are the same, there is no drift
        within.

    Returns
    -------
    ndarray, shape (TERMS, n)
    """
    half = (high - low) / 2
    wide = half > 0
    x = (at - (low + high) / 2) / np.where(wide, half, 1.0)
    scale = half**1.5 / np.square(KAPPA)[:, None]
    return np.where(wide, scale * eigenfunctions(x), 0.0)


class Continuation:
    """How drifts go on beyond the range that was seen, apart from their coefficients' part.

    Parameters
    ----------
    scales : mapping of str to ndarray, shape (draws,)
        Scale of each kind of drift, per doubling.
    keyed : Keyed
        Where randomness comes from.
    innovation : callable, optional
        ``innovation(kind, whose, what)`` returns standard draws of the slope's change at a knot, or
        of that which the terms leave of it at an end, in the place of those of ``keyed``.
    """

    def __init__(
        self,
        scales: dict[str, np.ndarray],
        keyed: Keyed,
        innovation: Innovation | None = None,
    ) -> None:
        self.scales = scales
        self.innovation = innovation or (lambda *key: keyed.draws(None, *key))

    def beyond(
        self, kind: str, whose: object, at: float, low: float, high: float
    ) -> np.ndarray | float:
        """Return what a drift adds at a data size beyond the line from its end; 0 within.

        Parameters
        ----------
        kind : str
            Which of ``scales``.
        whose : object
            Name of the task or curve.
        at, low, high : float
            Log2 of the data size, and of the smallest and largest that were seen.
        """
        if low <= at <= high:
            return 0.0
        side, edge = ("high", high) if at > high else ("low", low)
        first, last = sorted((edge, at))
        total: np.ndarray | float = 0.0
        if high > low:
            rest = np.sqrt(REST_SLOPE * (high - low) / 2)
            total = abs(at - edge) * rest * self.innovation(kind, whose, side)
        knots = np.arange(np.floor(first / KNOT), np.ceil(last / KNOT)) * KNOT + KNOT / 2
        for knot in knots[(knots > first) & (knots < last)]:
            step = abs(at - knot) * np.sqrt(KNOT)
            total = total + step * self.innovation(kind, whose, float(knot))
        return self.scales[kind] * total
