"""A linear-Gaussian experiment, whose expected information gains have closed forms.

``theta ~ N(0, I)``, an outcome ``y = b.theta + noise``, a goal ``g = a.theta``. Then
``I(y; g) = -log(1 - rho^2) / 2``; coordinates of theta that the goal does not have are nuisances,
which a right estimator integrates out.
"""

import numpy as np
from scipy.stats import norm

from tunecast.models.planning.goals import WinnerGoal
from tunecast.models.planning.outcomes import Outcomes

# The goal, and four runs: two that share a nuisance (the last coordinate, a base model's effect),
# one without it, and one that cannot inform.
A = np.array([1.0, 0.5, 0.0])
RUNS = np.array([[1.0, 0.5, 0.8], [0.6, 1.0, 0.8], [1.0, 0.0, 0.0], [0.5, -1.0, 0.7]])
NOISE = np.array([0.5, 0.4, 0.9, 0.6])
USELESS = 3
MARGIN = 0.2  # between the methods, for winners


def gaussian(draws: int, seed: int, noise: float = 1.0) -> tuple[Outcomes, np.ndarray]:
    """Return outcomes of the four runs, their noise scaled, and the goal."""
    theta = np.random.default_rng(seed).standard_normal((draws, 3))
    scale = np.broadcast_to(noise * NOISE, (draws, len(RUNS))).copy()
    return Outcomes(theta @ RUNS.T, scale, np.full(draws, np.inf)), theta @ A


def two_methods(goal: np.ndarray) -> WinnerGoal:
    """The first of two methods wins where the goal is below the margin's negative."""
    return WinnerGoal((np.column_stack([goal + MARGIN, np.zeros(len(goal))]),))


def closed_form(batch: list[int]) -> float:
    """Return the mutual information of a batch's outcomes and the goal."""
    if not batch:
        return 0.0
    b = RUNS[batch]
    c = b @ A
    # A run that is listed twice has the noise of each of its replicates.
    explained = c @ np.linalg.solve(b @ b.T + np.diag(NOISE[batch] ** 2), c)
    return float(-0.5 * np.log(1 - explained / (A @ A)))


def closed_form_of_winner(run: int) -> float:
    """Return the mutual information of one outcome and the sign of ``g + MARGIN``."""
    e = np.linspace(-8, 8, 4001)
    share = (RUNS[run] @ A) ** 2 / (RUNS[run] @ RUNS[run] + NOISE[run] ** 2)
    p = norm.cdf((MARGIN + np.sqrt(share) * e) / np.sqrt(A @ A - share))
    before = entropy(np.asarray(norm.cdf(MARGIN / np.sqrt(A @ A))))
    return float(before - np.trapezoid(entropy(p) * norm.pdf(e), e))


def entropy(p: np.ndarray) -> np.ndarray:
    """Return the entropy of a coin in nats."""
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return -(p * np.log(p) + (1 - p) * np.log(1 - p))
