"""Nested Monte Carlo: expected information gain without linearising anything.

An outcome is simulated from one posterior draw and weighs all the others by their Student-t
likelihood [1]_. The weights of a long batch fall on few draws; the effective sample size tells.

References
----------
.. [1] Rainforth, Cornish, Yang, Warrington 2018, On Nesting Monte Carlo Estimators,
   arXiv:1709.06181.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunecast.models.inference.posterior import spread_out
from tunecast.models.planning.estimates import GainEstimate, delete_group_folds, jackknife_error
from tunecast.models.planning.goals import Goal, WinnerGoal
from tunecast.models.planning.importance import (
    continuous_information,
    leave_own_out,
    winner_information,
)
from tunecast.models.planning.outcomes import Outcomes, student_t_logpdf

OUTER_DRAWS = 1000  # outcomes that are simulated
# A nested estimate needs so many effective draws: with fewer it is low, and its error does not say.
MIN_ESS = 30


class NestedMonteCarlo:
    """What the outcomes of a growing batch tell about a goal, in all.

    Parameters
    ----------
    outcomes : Outcomes
        Of all candidates.
    goal : ContinuousGoal or WinnerGoal
        What is asked.
    rng : numpy.random.Generator
        Draws the noise of the outcomes.
    outer_draws : int
        How many outcomes are simulated.
    jackknife : bool
        Whether to estimate Monte Carlo standard errors, at ten times the cost.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        goal: Goal,
        rng: np.random.Generator,
        outer_draws: int = OUTER_DRAWS,
        *,
        jackknife: bool = True,
    ) -> None:
        self.outcomes, self.goal, self.rng = outcomes, goal, rng
        draws = len(outcomes.df)
        self.simulated_from = spread_out(draws, outer_draws)
        self.log_weights = np.zeros((len(self.simulated_from), draws), dtype=np.float32)
        # All draws, and all but each group of them.
        self._folds = [np.arange(draws), *(delete_group_folds(draws) if jackknife else ())]
        self._batch_gain = np.zeros(len(self._folds))  # by fold
        self._scores = () if isinstance(goal, WinnerGoal) else goal.normal_scores()

    def gain(self, candidate: int) -> GainEstimate:
        """Return what one more run would add to the batch."""
        return self._estimate(self._weighted(candidate))[0]

    def add(self, candidate: int) -> GainEstimate:
        """Put a run into the batch, for good, and return what it adds."""
        self.log_weights = self._weighted(candidate)
        estimate, self._batch_gain = self._estimate(self.log_weights)
        return estimate

    def _weighted(self, candidate: int) -> np.ndarray:
        """Return log weights after simulated outcomes of one more run."""
        f, scale = self.outcomes.expected[:, candidate], self.outcomes.scale[:, candidate]
        df, at = self.outcomes.df, self.simulated_from
        noise = self.rng.standard_normal(len(at))
        finite = np.isfinite(df[at])
        noise[finite] /= np.sqrt(self.rng.chisquare(df[at][finite]) / df[at][finite])
        y = f[at] + scale[at] * noise
        return self.log_weights + student_t_logpdf(y[:, None] - f, scale, df)

    def _estimate(self, log_weights: np.ndarray) -> tuple[GainEstimate, np.ndarray]:
        weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True)).astype(float)
        found = [self._evaluate(weights, fold) for fold in self._folds]
        batch_gain = np.array([gain for gain, _ in found])
        added = batch_gain - self._batch_gain
        error = float(jackknife_error(added[1:])) if len(added) > 1 else np.nan
        return GainEstimate(float(added[0]), error, found[0][1]), batch_gain

    def _evaluate(self, weights: np.ndarray, fold: np.ndarray) -> tuple[float, float]:
        """Return the batch's gain and effective sample size, from some of the draws."""
        rows = np.flatnonzero(np.isin(self.simulated_from, fold))
        weights = weights[np.ix_(rows, fold)]
        own = np.searchsorted(fold, self.simulated_from[rows])
        normalised, ess = leave_own_out(weights, own)
        if isinstance(self.goal, WinnerGoal):
            winners = [b[fold].argmin(axis=1) for b in self.goal.blocks]
            gains = [float(winner_information(weights, own, w).mean()) for w in winners]
        else:
            gains = [
                float(continuous_information(normalised, ess, z[fold], own).mean())
                for z in self._scores
            ]
        return float(np.mean(gains)), float(np.median(ess))


def nested_conditional_gains(
    outcomes: Outcomes,
    goal: Goal,
    batch: Sequence[int],
    rng: np.random.Generator,
    outer_draws: int = OUTER_DRAWS,
    *,
    jackknife: bool = True,
) -> list[GainEstimate]:
    """Return the gain of each run of a batch given those before it, by nested Monte Carlo.

    NaN from where fewer than `MIN_ESS` draws count: outcomes narrow a posterior down, and soon no
    draw of it is close to a whole batch of them.
    """
    nested = NestedMonteCarlo(outcomes, goal, rng, outer_draws, jackknife=jackknife)
    found: list[GainEstimate] = []
    for candidate in batch:
        estimate = nested.add(candidate)
        if estimate.ess < MIN_ESS:
            break
        found.append(estimate)
    return found + [GainEstimate(np.nan, np.nan)] * (len(batch) - len(found))
