"""Information about which method wins, by logistic regression on simulated outcomes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy  # its parts are imported when they are used, which keeps start-up short

from tunecast.models.planning.conditioning import ConditionedOutcomes
from tunecast.models.planning.goals import WinnerGoal
from tunecast.models.planning.logits import (
    likelihood_gain,
    score_test_information,
    winner_logits,
)


@dataclass(frozen=True)
class WinnerRegression:
    """What a batch tells about who wins: ``E[log q(winner | y)] + H(winner)``.

    A lower bound whatever ``q`` is [1]_; here it is a multinomial logit. What it knows of the batch
    are the log losses that a linear regression on the outcomes predicts: no more numbers for a long
    batch than for a short one. The bias from chance correlations of so many draws is subtracted.

    Parameters
    ----------
    outcomes : ConditionedOutcomes
        Of all candidates, given the batch.
    goal : WinnerGoal
        What is asked.
    winners : tuple of ndarray of int, shape (draws,)
        Who wins in each draw, at each target.
    predicted : tuple of ndarray, shape (draws, methods)
        Log losses less their mean over draws, as the batch predicts them, at each target.
    logits : tuple of ndarray, shape (draws, winners)
        Of ``q``, at each target.

    References
    ----------
    .. [1] Barber and Agakov 2003, The IM Algorithm: A Variational Approach to Information
       Maximization.
    """

    outcomes: ConditionedOutcomes
    goal: WinnerGoal
    winners: tuple[np.ndarray, ...]
    predicted: tuple[np.ndarray, ...]
    logits: tuple[np.ndarray, ...]

    def conditioned_on(self, candidate: int) -> WinnerRegression:
        """Return the same with one more run in the batch."""
        outcomes = self.outcomes.conditioned_on(candidate)
        e = outcomes.innovations[:, -1:]
        predicted = tuple(
            before + e * (e[:, 0] @ (losses - losses.mean(axis=0)) / outcomes.draws)
            for before, losses in zip(self.predicted, self.goal.blocks, strict=True)
        )
        return replace(
            self,
            outcomes=outcomes,
            predicted=predicted,
            logits=tuple(map(winner_logits, predicted, self.winners)),
        )

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """Return what each candidate would add to the batch, in nats, shape (candidates,)."""
        e = self.outcomes.innovation(candidates)
        total = np.zeros(len(candidates))
        for winner, logits in zip(self.winners, self.logits, strict=True):
            chance = (logits.shape[1] - 1) / (2 * self.outcomes.draws)
            for i in range(len(candidates)):
                total[i] += likelihood_gain(logits, winner, e[:, i]) - chance
        return total / len(self.winners)

    def approximate_gains(self) -> np.ndarray:
        """Return the gain of every candidate, to the second order in its effect (score test)."""
        e = self.outcomes.innovation(np.arange(len(self.outcomes.variance)))
        total = np.zeros(e.shape[1])
        for winner, logits in zip(self.winners, self.logits, strict=True):
            chance = (logits.shape[1] - 1) / (2 * self.outcomes.draws)
            total += score_test_information(logits, winner, e) - chance
        return total / len(self.winners)

    def probability_right(self) -> np.ndarray:
        """Return the probability that the most probable winner is the winner, at each target."""
        return np.array(
            [scipy.special.softmax(logits, axis=1).max(axis=1).mean() for logits in self.logits]
        )

    def expected_regret(self) -> np.ndarray:
        """Return how many nats the choice of a method loses to the best, on average, by target.

        Chosen is the method of the lowest predicted loss, or the most probable winner, whichever
        rule loses less: the best rule loses no more than either.
        """
        found = []
        for block, predicted, logits in zip(
            self.goal.blocks, self.predicted, self.logits, strict=True
        ):
            losses = np.exp(block)
            lowest = (predicted + block.mean(axis=0)).argmin(axis=1)
            likeliest = np.unique(block.argmin(axis=1))[logits.argmax(axis=1)]
            draws = np.arange(self.outcomes.draws)
            chosen = [losses[draws, method].mean() for method in (lowest, likeliest)]
            found.append(min(chosen) - losses.min(axis=1).mean())
        return np.array(found)


def winner_regression(outcomes: ConditionedOutcomes, goal: WinnerGoal) -> WinnerRegression:
    """Return the regression of winners on outcomes, before any run is in the batch."""
    winners = goal.winners()
    predicted = tuple(np.zeros(b.shape) for b in goal.blocks)
    return WinnerRegression(
        outcomes, goal, winners, predicted, tuple(map(winner_logits, predicted, winners))
    )
