"""The greedy choice of batches: near the best, within the budget, each run once."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from linear_gaussian import two_methods

from tunecast.models.planning.batch import MIN_GAIN, greedy_batch
from tunecast.models.planning.conditioning import unconditioned
from tunecast.models.planning.goals import ContinuousGoal
from tunecast.models.planning.linear import LinearRegression, linear_regression
from tunecast.models.planning.outcomes import Outcomes
from tunecast.models.planning.regression import gain_estimator


def pool(seed: int, n: int = 8) -> tuple[LinearRegression, np.ndarray]:
    """A small pool of runs with costs, and a goal of two quantities."""
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal((1000, 5))
    b = rng.standard_normal((5, n))
    outcomes = Outcomes(theta @ b, np.full((1000, n), 0.7), np.full(1000, np.inf))
    goal = ContinuousGoal((theta[:, :1], theta[:, 1:2]))
    return linear_regression(unconditioned(outcomes, rng, n), goal), rng.uniform(0.5, 2.0, n)


def gain_of(start: LinearRegression, batch: tuple[int, ...]) -> float:
    total, state = 0.0, start
    for i in batch:
        total += state.gains(np.array([i]))[0]
        state = state.conditioned_on(i)
    return total


@pytest.mark.parametrize("seed", range(6))
def test_greedy_is_near_the_best_of_all_batches(seed: int) -> None:
    start, costs = pool(seed)
    budget = 4.0
    batch = greedy_batch(start, costs, budget, 8, np.arange(8))
    found = gain_of(start, batch.chosen)
    assert costs[list(batch.chosen)].sum() <= budget
    assert sum(batch.gains) == pytest.approx(found, rel=1e-6)
    every = (c for k in range(1, 8) for c in itertools.combinations(range(8), k))
    best = max(gain_of(start, c) for c in every if costs[list(c)].sum() <= budget)
    assert found >= (1 - np.exp(-1)) / 2 * best  # Leskovec et al. 2007, theorem 3
    assert batch.submodularity_violations or batch.share_of_best <= found / best + 1e-9
    # Control: the worst batch that spends as much falls below it.
    affordable = [c for c in itertools.combinations(range(8), 3) if costs[list(c)].sum() <= budget]
    assert min(gain_of(start, c) for c in affordable) < 0.8 * best


def test_the_same_run_is_bought_once() -> None:
    start, costs = pool(0)
    same_run = np.array([0, 0, 0, 0, 1, 1, 2, 3])
    batch = greedy_batch(start, costs, 100.0, 8, same_run)
    assert len(batch.chosen) == 4
    assert sorted(same_run[list(batch.chosen)]) == [0, 1, 2, 3]
    assert len(greedy_batch(start, costs, 100.0, 8, np.arange(8)).chosen) > 4  # control


def test_a_budget_is_spent() -> None:
    """Without one, the batch ends where the next run adds a thousandth of a nat."""
    start, costs = pool(1)
    noise = start.outcomes.noise_variance * 2e4  # no run tells half of that
    quiet = replace(start, outcomes=replace(start.outcomes, noise_variance=noise))
    assert 0 < quiet.approximate_gains().max() < MIN_GAIN
    assert not greedy_batch(quiet, costs, np.inf, 8, np.arange(8)).chosen
    batch = greedy_batch(quiet, costs, 4.0, 8, np.arange(8))
    assert batch.chosen
    assert 4.0 - costs.min() < costs[list(batch.chosen)].sum() <= 4.0


def test_complements_are_found() -> None:
    """Two runs share a large nuisance, and only their difference tells the goal."""
    rng = np.random.default_rng(1)
    g, nuisance, other = rng.standard_normal((3, 3000))
    f = np.column_stack([5 * nuisance + g, 5 * nuisance, other + 0.3 * g])
    outcomes = Outcomes(f, np.full(f.shape, 0.2), np.full(3000, np.inf))
    for goal in (ContinuousGoal((g[:, None],)), two_methods(g)):
        start = gain_estimator(outcomes, goal, rng, 3)
        first = start.gains(np.arange(3))
        then = start.conditioned_on(0).gains(np.arange(3))
        assert then[1] > 5 * max(first[1], 0.01)
        batch = greedy_batch(start, np.ones(3), 2.0, 2, np.arange(3))
        assert batch.submodularity_violations > 0
