"""Greedy choice of a batch of runs under a budget, with a bound on how far the best may lie above.

References
----------
.. [1] Leskovec et al. 2007, Cost-effective Outbreak Detection in Networks, section 3: greedy choice
   under costs, and the online bound for submodular gains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tunecast.models.planning.regression import GainEstimator

MIN_GAIN = 1e-3  # nats; a run that adds less is not made unless there is a budget to spend
# Nats; a gain that rises by less is not told from the noise between two evaluations.
CLEAR_RISE = 0.01


@dataclass(frozen=True)
class Batch:
    """Runs in the order chosen, and how good the choice is at least.

    Parameters
    ----------
    chosen : tuple of int
        Candidates in order.
    gains : tuple of float
        What each adds to those before it, in nats, as estimated while choosing.
    rule : {"gain per cost", "gain"}
        By what they were chosen; both are tried and the better batch is kept [1]_.
    share_of_best : float
        The batch's gain over an upper bound of that of any batch of the same budget, which holds if
        gains are submodular: if they diminish as the batch grows.
    submodularity_violations : int
        How often a candidate was found to add more than a step earlier: where two runs complement
        one another, gains do not diminish.
    """

    chosen: tuple[int, ...]
    gains: tuple[float, ...]
    rule: str
    share_of_best: float
    submodularity_violations: int


def greedy_batch(
    estimator: GainEstimator, costs: np.ndarray, budget: float, runs: int, same_run: np.ndarray
) -> Batch:
    """Return the better of two greedy batches within a budget.

    Parameters
    ----------
    estimator : GainEstimator
        Before any run is in the batch.
    costs : ndarray, shape (candidates,)
        Cost of each candidate, in the unit of the budget.
    budget : float
        What the batch may cost. It is spent while any run tells more than chance would; if it is
        infinite, the batch ends where the next run would add less than `MIN_GAIN`.
    runs : int
        How many runs it may have.
    same_run : ndarray of int, shape (candidates,)
        Candidates of one number are the same run, which is bought once.
    """
    found = [
        _greedy(estimator, costs, budget, runs, same_run, rule)
        for rule in ("gain per cost", "gain")
    ]
    return max(found, key=lambda batch: sum(batch.gains))


def _greedy(
    estimator: GainEstimator,
    costs: np.ndarray,
    budget: float,
    runs: int,
    same_run: np.ndarray,
    rule: str,
) -> Batch:
    n = len(costs)
    weight = 1 / costs if rule == "gain per cost" else np.ones(n)
    # Without a budget to spend, a batch ends where it is no longer worth it.
    least = MIN_GAIN if np.isinf(budget) else 0.0
    left = budget
    available = np.ones(n, dtype=bool)
    previous = np.full(n, np.inf)
    chosen: list[int] = []
    gains: list[float] = []
    violations = 0
    while True:
        current = estimator.gains(np.arange(n))
        violations += int((current > previous + CLEAR_RISE).sum())
        previous = current
        available &= costs <= left
        worth = np.where(available & (current > least), current * weight, -np.inf)
        best = int(worth.argmax())
        if len(chosen) == runs or np.isinf(worth[best]):
            break
        chosen.append(best)
        gains.append(float(current[best]))
        left -= costs[best]
        available[same_run == same_run[best]] = False
        estimator = estimator.conditioned_on(best)
    total = sum(gains)
    rest = _fractional_knapsack(current, costs, budget, ~np.isin(same_run, same_run[chosen]))
    share = total / (total + rest) if total > 0 else np.nan
    return Batch(tuple(chosen), tuple(gains), rule, share, violations)


def _fractional_knapsack(
    gains: np.ndarray, costs: np.ndarray, budget: float, among: np.ndarray
) -> float:
    """Return the largest sum of gains within a budget when runs can be bought in part."""
    at = np.flatnonzero(among & (gains > 0) & np.isfinite(gains) & (costs <= budget))
    at = at[np.argsort(-gains[at] / costs[at])]
    spent = np.cumsum(costs[at])
    part = np.clip((budget - (spent - costs[at])) / costs[at], 0, 1)
    return float((gains[at] * part).sum())
