"""Candidates' outcomes conditioned on those of a batch, run by run.

A pivoted Cholesky factorisation of the covariance between normal scores: to condition on one more
run costs draws times candidates, so this is what plans batches. For each posterior draw one outcome
of the batch is simulated (a fantasy); these are joint, so that what two runs share counts once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tunecast.models.planning.outcomes import Outcomes
from tunecast.models.planning.scores import normal_scores, score_unit


@dataclass(frozen=True)
class ConditionedOutcomes:
    """Normal scores of all candidates' outcomes, given the outcomes of a batch.

    Parameters
    ----------
    scores : ndarray, shape (draws, candidates)
        Normal scores of expected log losses, float32.
    noise_variance : ndarray, shape (candidates,)
        Of run noise in units of the scores: normal noise of the same entropy.
    standard_noise : ndarray, shape (draws, runs)
        Standard normal noise of simulated outcomes, one column for each run that may yet be added;
        all candidates share it, so that they are compared on the same luck (common random numbers).
    variance : ndarray, shape (candidates,)
        Of the scores, given the batch.
    loadings : tuple of ndarray, shape (candidates,)
        Covariances of candidates with each innovation of the batch.
    innovations : ndarray, shape (draws, runs in the batch)
        Simulated outcomes of the batch, each less what those before it predict, standardised.
    """

    scores: np.ndarray
    noise_variance: np.ndarray
    standard_noise: np.ndarray
    variance: np.ndarray
    loadings: tuple[np.ndarray, ...]
    innovations: np.ndarray

    @property
    def draws(self) -> int:
        """Number of draws."""
        return len(self.scores)

    def outcome_variance(self, candidates: np.ndarray | int) -> np.ndarray:
        """Return the variance of candidates' outcomes given the batch, noise included."""
        return self.variance[candidates] + self.noise_variance[candidates]

    def innovation(self, candidates: np.ndarray) -> np.ndarray:
        """Return what outcomes show beyond the batch, standardised, (draws, candidates)."""
        y = self.scores[:, candidates] + self.standard_noise[:, :1] * np.sqrt(
            self.noise_variance[candidates], dtype=np.float32
        )
        if self.loadings:
            y -= self.innovations @ np.array(self.loadings, dtype=np.float32)[:, candidates]
        sd = np.sqrt(self.outcome_variance(candidates))
        return y / np.maximum(sd, 1e-12).astype(np.float32)

    def conditioned_on(self, candidate: int) -> ConditionedOutcomes:
        """Return the same given one more run."""
        innovation = self.innovation(np.array([candidate]))
        loading = self.scores[:, candidate] @ self.scores / self.draws
        for earlier in self.loadings:
            loading = loading - earlier * earlier[candidate]
        loading = loading / np.sqrt(self.outcome_variance(candidate))
        return replace(
            self,
            standard_noise=self.standard_noise[:, 1:],
            variance=np.maximum(self.variance - loading**2, 0.0),
            loadings=(*self.loadings, loading),
            innovations=np.column_stack([self.innovations, innovation]),
        )


def unconditioned(outcomes: Outcomes, rng: np.random.Generator, runs: int) -> ConditionedOutcomes:
    """Return the outcomes before any run is in the batch.

    Parameters
    ----------
    outcomes : Outcomes
        Of all candidates.
    rng : numpy.random.Generator
        Draws the noise of simulated outcomes.
    runs : int
        How many runs will be added at most.
    """
    z = normal_scores(outcomes.expected)
    noise_variance = outcomes.noise_variance / score_unit(outcomes.expected) ** 2
    n = len(z)
    scores = z.astype(np.float32)
    return ConditionedOutcomes(
        scores=scores,
        noise_variance=noise_variance,
        # One more, for asking what a run would add to the whole batch.
        standard_noise=rng.standard_normal((n, runs + 1)).astype(np.float32),
        variance=(scores**2).mean(axis=0).astype(float),
        loadings=(),
        innovations=np.empty((n, 0), dtype=np.float32),
    )
