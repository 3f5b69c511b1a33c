"""Expected information gain by regression of a goal on simulated outcomes.

The gain is the mutual information of outcome and goal [1]_. This is the counterpart of nested Monte
Carlo (`tunecast.models.planning.nested`) from the same posterior draws: it conditions on one more
run at a cost linear in draws times candidates, so it is what plans batches.

References
----------
.. [1] Lindley 1956, On a Measure of the Information Provided by an Experiment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np

from tunecast.models.planning.conditioning import unconditioned
from tunecast.models.planning.estimates import GainEstimate, delete_group_folds, jackknife_error
from tunecast.models.planning.goals import ContinuousGoal, Goal
from tunecast.models.planning.linear import linear_regression
from tunecast.models.planning.outcomes import Outcomes
from tunecast.models.planning.streams import Stream, generator
from tunecast.models.planning.winners import winner_regression


class GainEstimator(Protocol):
    """Expected information gains of candidates, given the outcomes of a batch."""

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """Return what each candidate would add to the batch, in nats."""

    def approximate_gains(self) -> np.ndarray:
        """Return the same for every candidate, quickly."""

    def conditioned_on(self, candidate: int) -> Self:
        """Return the estimator with one more run in the batch."""


def gain_estimator(
    outcomes: Outcomes, goal: Goal, rng: np.random.Generator, runs: int = 1
) -> GainEstimator:
    """Return the regression estimator before any run is in the batch.

    Parameters
    ----------
    outcomes : Outcomes
        Of all candidates.
    goal : ContinuousGoal or WinnerGoal
        What is asked.
    rng : numpy.random.Generator
        Draws the noise of simulated outcomes.
    runs : int
        How many runs will be added at most.
    """
    start = unconditioned(outcomes, rng, runs)
    if isinstance(goal, ContinuousGoal):
        return linear_regression(start, goal)
    return winner_regression(start, goal)


def conditional_gains(
    outcomes: Outcomes, goal: Goal, batch: Sequence[int], seed: int, *, jackknife: bool = True
) -> list[GainEstimate]:
    """Return the gain of each run of a batch given those before it.

    Monte Carlo standard errors are those of a jackknife over groups of draws; without it they are
    NaN. Near a gain of 0, where it is of second order in what chance gives and a jackknife sees too
    little, they are at least those of a chi-squared over twice the draws.
    """
    of_batch = outcomes.subset(slice(None), np.asarray(batch, dtype=int))
    gains = _gains_in_order(of_batch, goal, seed)
    if not jackknife:
        return [GainEstimate(float(gain), np.nan) for gain in gains]
    draws = len(outcomes.df)
    by_fold = np.array(
        [
            _gains_in_order(of_batch.subset(fold), goal.subset(fold), seed)
            for fold in delete_group_folds(draws)
        ]
    )
    least = np.sqrt(goal.num_effects() / 2) / draws
    errors = np.hypot(jackknife_error(by_fold), least)
    return [GainEstimate(float(g), float(e)) for g, e in zip(gains, errors, strict=True)]


def _gains_in_order(of_batch: Outcomes, goal: Goal, seed: int) -> np.ndarray:
    runs = of_batch.expected.shape[1]
    estimator = gain_estimator(of_batch, goal, generator(seed, Stream.OUTCOMES), runs)
    gains = np.empty(runs)
    for i in range(runs):
        gains[i] = estimator.gains(np.array([i]))[0]
        estimator = estimator.conditioned_on(i)
    return gains
