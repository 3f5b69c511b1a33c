"""Slope drift: real curves wander away from every law as the data grow beyond those that were seen.

The slope of log loss per doubling of the data is a random walk beyond the data, with a standard
deviation that grows with the root of the doublings, so log loss is an integrated one: one walk
shared by a task's curves and one of each curve. Their scales have priors that no run updates.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tunecast.models.hierarchy.keyed import Keyed
from tunecast.models.hierarchy.priors import Priors

# Slope innovations come at this spacing in doublings; finer changes no forecast visibly.
KNOT = 0.25

type Innovation = Callable[[str, object, float], np.ndarray]


class Drift:
    """Draws of what drift adds to log loss.

    Parameters
    ----------
    priors : mapping of str to Prior
        Their rows ``drift_task`` and ``drift_curve``.
    keyed : Keyed
        Where randomness comes from.
    innovation : callable, optional
        ``innovation(kind, whose, knot)`` returns standard draws of the slope's change at a knot, in
        the place of those of ``keyed``.
    """

    def __init__(self, priors: Priors, keyed: Keyed, innovation: Innovation | None = None) -> None:
        self.priors, self.keyed = priors, keyed
        self.innovation = innovation or (lambda *key: keyed.draws(None, *key))

    def scale(self, kind: str) -> np.ndarray:
        """Return the standard deviation of a knot's innovation, shape (draws,)."""
        row = self.priors[kind]
        return np.exp(row.location + row.scale * self.keyed.draws(None, kind)) * np.sqrt(KNOT)

    def beyond(
        self, kind: str, whose: object, at: float, low: float, high: float
    ) -> np.ndarray | float:
        """Return what one walk adds at a data size, 0 inside the range that was seen.

        Parameters
        ----------
        kind : {"drift_task", "drift_curve"}
            Which walk.
        whose : object
            Name of the task or curve.
        at, low, high : float
            Log2 of the data size, and of the smallest and largest that were seen.
        """
        if low <= at <= high:
            return 0.0
        edge = high if at > high else low
        first, last = sorted((edge, at))
        knots = np.arange(np.floor(first / KNOT), np.ceil(last / KNOT)) * KNOT + KNOT / 2
        total: np.ndarray | float = 0.0
        for knot in knots[(knots > first) & (knots < last)]:
            total = total + abs(at - knot) * self.innovation(kind, whose, float(knot))
        return self.scale(kind) * total
