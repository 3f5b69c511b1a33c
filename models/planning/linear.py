"""Information about continuous quantities, by linear regression on simulated outcomes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tunecast.models.planning.conditioning import ConditionedOutcomes
from tunecast.models.planning.goals import ContinuousGoal


@dataclass(frozen=True)
class LinearRegression:
    """What a batch tells about continuous quantities: ``-log(1 - R^2) / 2`` in normal scores.

    Exact for jointly normal draws; for one quantity otherwise a lower bound, but for the noise,
    which is taken for normal noise of the same entropy. The bias from chance correlations of so
    many draws is subtracted.

    Parameters
    ----------
    outcomes : ConditionedOutcomes
        Of all candidates, given the batch.
    widths : tuple of int
        Quantities in each block of the goal.
    cross_covariance : ndarray, shape (candidates, quantities)
        Of candidates' scores with those of the quantities of all blocks, given the batch.
    goal_covariance : ndarray, shape (quantities, quantities)
        Of the quantities' scores, given the batch.
    """

    outcomes: ConditionedOutcomes
    widths: tuple[int, ...]
    cross_covariance: np.ndarray
    goal_covariance: np.ndarray

    def conditioned_on(self, candidate: int) -> LinearRegression:
        """Return the same with one more run in the batch."""
        sd = np.sqrt(self.outcomes.outcome_variance(candidate))
        goal_loading = self.cross_covariance[candidate] / sd
        outcomes = self.outcomes.conditioned_on(candidate)
        loading = outcomes.loadings[-1]
        return replace(
            self,
            outcomes=outcomes,
            cross_covariance=self.cross_covariance - loading[:, None] * goal_loading,
            goal_covariance=self.goal_covariance - np.outer(goal_loading, goal_loading),
        )

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """Return what each candidate would add to the batch, in nats, shape (candidates,)."""
        outcome_variance = np.maximum(self.outcomes.outcome_variance(candidates), 1e-24)
        variance = self.outcomes.variance[candidates]
        total = np.zeros(len(candidates))
        end = 0
        for width in self.widths:
            block = slice(end, end := end + width)
            c = self.cross_covariance[candidates, block]
            # Sums of squares can leave a variance of zero a rounding error below it.
            inside = self.goal_covariance[block, block] + 1e-6 * np.eye(width)
            r2 = (c * np.linalg.solve(inside, c.T).T).sum(axis=1) / outcome_variance
            # Covariances from so many draws are never quite zero.
            chance = width * variance / outcome_variance / self.outcomes.draws
            r2 = np.clip((r2 - chance) / (1 - chance), -1, 1 - 1e-9)
            total -= 0.5 * np.log1p(-r2)
        return total / len(self.widths)

    def approximate_gains(self) -> np.ndarray:
        """Return the gain of every candidate; nothing has to be approximated here."""
        return self.gains(np.arange(len(self.outcomes.variance)))


def linear_regression(outcomes: ConditionedOutcomes, goal: ContinuousGoal) -> LinearRegression:
    """Return the regression of a goal on outcomes, before any run is in the batch."""
    asked = np.column_stack(goal.normal_scores())
    return LinearRegression(
        outcomes=outcomes,
        widths=tuple(block.shape[1] for block in goal.blocks),
        cross_covariance=(outcomes.scores.T @ asked.astype(np.float32) / outcomes.draws).astype(
            float
        ),
        goal_covariance=asked.T @ asked / outcomes.draws,
    )
