"""The posterior predictive distribution of outcomes: what candidate runs would show.

A candidate's outcome is ``y = f + noise``: ``f`` is its expected log loss, drawn jointly with
whatever a plan asks about, so that all the two share (a law's parameters, a checkpoint's effect,
slope drift) is integrated out and never conditioned on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from tunecast.models.hierarchy.numpy_backends import log_density_of
from tunecast.models.inference.posterior import spread_out
from tunecast.models.laws.positive import NumPy
from tunecast.models.planning.fitted import FittedModel

NOISE_DRAWS = 200  # over which the distribution of run noise is averaged


@dataclass(frozen=True)
class Outcomes:
    """Joint posterior predictive draws of the outcomes of some runs.

    Parameters
    ----------
    expected : ndarray, shape (draws, candidates)
        Expected log loss.
    scale : ndarray, shape (draws, candidates)
        Scale of run noise on log loss; of the mean over replicates where there are several.
    df : ndarray, shape (draws,)
        Degrees of freedom of the noise; infinity for normal noise.
    """

    expected: np.ndarray
    scale: np.ndarray
    df: np.ndarray

    def subset(
        self, draws: np.ndarray | slice, candidates: np.ndarray | slice = slice(None)
    ) -> Outcomes:
        """Return some draws of some candidates."""
        return Outcomes(
            self.expected[draws][:, candidates], self.scale[draws][:, candidates], self.df[draws]
        )

    @cached_property
    def noise_variance(self) -> np.ndarray:
        """Entropy power of run noise: the variance of the normal noise that hides as much.

        Of the noise of all draws together, heavy tails and an uncertain scale included: where noise
        is small against what it hides, information goes by its entropy alone. Shape (candidates,).
        """
        at = spread_out(len(self.df), NOISE_DRAWS)
        unit = np.exp(np.log(self.scale[at]).mean(axis=0))
        grid = np.linspace(-9.0, 7.0, 97)  # of log |noise| over its unit
        x = np.exp(grid)[:, None] * unit
        density = sum(np.exp(student_t_logpdf(x, self.scale[s], self.df[s])) for s in at) / len(at)
        mass = 2 * np.trapezoid(density * x, grid, axis=0)
        density /= mass
        entropy = -2 * np.trapezoid(density * np.log(density + 1e-300) * x, grid, axis=0)
        return np.exp(2 * entropy) / (2 * np.pi * np.e)


def student_t_logpdf(residual: np.ndarray, scale: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Return the log density of Student-t noise, or of normal noise where ``df`` is infinite."""
    infinite = np.isinf(df)
    student = log_density_of(residual, np.where(infinite, 1.0, df), 0.0, scale, NumPy)
    return np.where(infinite, log_density_of(residual, None, 0.0, scale, NumPy), student)


def joint_predictive_draws(
    fit: FittedModel, candidates: pd.DataFrame, targets: pd.DataFrame | None, seed: int
) -> tuple[Outcomes, Outcomes | None]:
    """Return posterior predictive draws of candidates and of targets, joint over both.

    Parameters
    ----------
    fit : FittedModel
        What is known.
    candidates, targets : DataFrame
        Checked rows; candidates with their ``replicates``.
    seed : int
        Of all that is drawn anew.
    """
    both = candidates if targets is None else pd.concat([candidates, targets], ignore_index=True)
    drawn = fit.draws(both, seed=seed)
    n = len(candidates)
    expected, scale = np.log(drawn.expected), drawn.scale
    # The mean of n runs; its noise is taken as Student-t too, with a tail heavier than it has.
    of_mean = scale[:, :n] / np.sqrt(candidates["replicates"].to_numpy(float))
    at_targets = None if targets is None else Outcomes(expected[:, n:], scale[:, n:], drawn.df)
    return Outcomes(expected[:, :n], of_mean, drawn.df), at_targets
