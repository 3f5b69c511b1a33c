"""Information gains, where closed forms exist, and the choice of batches.

The linear-Gaussian case: ``theta ~ N(0, I)``, an outcome ``y = b.theta + noise``, a goal
``g = a.theta``. Then ``I(y; g) = -log(1 - rho^2) / 2``; coordinates of theta that the goal does not
have are nuisances, which a right estimator integrates out.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from tunecast.models.design import contests_of, joint_draws, ready_candidates, ready_targets
from tunecast.models.fits import Fit
from tunecast.models.information import (
    WORTH,
    Contests,
    Estimate,
    Goal,
    Nested,
    Outcomes,
    Regression,
    Values,
    along,
    choose,
    differences,
    log_student,
    nested_along,
    normal_scores,
    regression,
)

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


def closed(batch: list[int]) -> float:
    """Return the mutual information of a batch's outcomes and the goal."""
    if not batch:
        return 0.0
    b = RUNS[batch]
    c = b @ A
    # A run that is listed twice has the noise of each of its replicates.
    explained = c @ np.linalg.solve(b @ b.T + np.diag(NOISE[batch] ** 2), c)
    return float(-0.5 * np.log(1 - explained / (A @ A)))


def closed_winner(run: int) -> float:
    """Return the mutual information of one outcome and the sign of ``g + MARGIN``."""
    e = np.linspace(-8, 8, 4001)
    share = (RUNS[run] @ A) ** 2 / (RUNS[run] @ RUNS[run] + NOISE[run] ** 2)
    p = norm.cdf((MARGIN + np.sqrt(share) * e) / np.sqrt(A @ A - share))
    before = entropy(np.asarray(norm.cdf(MARGIN / np.sqrt(A @ A))))
    return float(before - np.trapezoid(entropy(p) * norm.pdf(e), e))


def entropy(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return -(p * np.log(p) + (1 - p) * np.log(1 - p))


def two_methods(goal: np.ndarray) -> Contests:
    """The first of two methods wins where the goal is below the margin's negative."""
    return Contests((np.column_stack([goal + MARGIN, np.zeros(len(goal))]),))


def by_regression(outcomes: Outcomes, goal: Goal, run: int, seed: int) -> Estimate:
    return along(outcomes, goal, [run], seed)[0]


def by_nesting(outcomes: Outcomes, goal: Goal, run: int, seed: int) -> Estimate:
    return Nested(outcomes, goal, np.random.default_rng([seed, 1]), outer=400).gain(run)


type Estimator = Callable[[Outcomes, Goal, int, int], Estimate]
ESTIMATORS = pytest.mark.parametrize("estimator", [by_regression, by_nesting])
REPLICATES = 10


def replicates(
    estimator: Estimator, winner: bool, run: int, *, draws: int = 1200, noise: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return estimates and their standard errors over independent sets of draws."""
    found = []
    for seed in range(REPLICATES):
        outcomes, g = gaussian(draws, seed, noise)
        goal: Goal = two_methods(g) if winner else Values((g[:, None],))
        estimate = estimator(outcomes, goal, run, seed)
        found.append((estimate.gain, estimate.error))
    gain, error = np.array(found).T
    return gain, error


def agrees(gain: np.ndarray, truth: float, *, errors: float = 2.0, percent: float = np.inf) -> bool:
    """Whether the mean lies within some standard errors of the truth, and so many per cent."""
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    off = abs(gain.mean() - truth)
    return bool(off < errors * error + 1e-4 and off < percent / 100 * truth)


# ------------------------------------------------------------------ closed forms


@ESTIMATORS
@pytest.mark.parametrize("run", [0, 2])
def test_values_reach_the_closed_form(estimator: Estimator, run: int) -> None:
    gain, error = replicates(estimator, False, run, draws=2000)
    assert agrees(gain, closed([run]), percent=2), (gain.mean(), closed([run]))
    # Standard errors tell the spread between sets of draws: 16 of them know it to a fifth.
    assert 0.5 < error.mean() / gain.std(ddof=1) < 2


@ESTIMATORS
def test_winners_reach_the_closed_form(estimator: Estimator) -> None:
    gain, error = replicates(estimator, True, 0, draws=2000)
    # Winners of 400 outcomes are known to 3 % by so many replicates, whatever the estimator.
    percent = 2 if estimator is by_regression else np.inf
    assert agrees(gain, closed_winner(0), percent=percent), (gain.mean(), closed_winner(0))
    assert 0.5 < error.mean() / gain.std(ddof=1) < 2


@ESTIMATORS
@pytest.mark.parametrize("winner", [False, True])
def test_control_the_wrong_noise_is_noticed(estimator: Estimator, winner: bool) -> None:
    gain, _ = replicates(estimator, winner, 0, noise=0.7)
    assert not agrees(gain, closed_winner(0) if winner else closed([0]))


@ESTIMATORS
def test_control_a_nuisance_taken_as_known_is_noticed(estimator: Estimator) -> None:
    """Holding the base model's effect fixed makes a run look more telling than it is."""
    found = []
    for seed in range(REPLICATES):
        outcomes, g = gaussian(1500, seed)
        theta = np.random.default_rng(seed).standard_normal((1500, 3))
        fixed = Outcomes(outcomes.expected - 0.8 * theta[:, [2]], outcomes.scale, outcomes.df)
        found.append(estimator(fixed, Values((g[:, None],)), 0, seed).gain)
    assert not agrees(np.array(found), closed([0]))
    assert np.mean(found) > 1.1 * closed([0])


@pytest.mark.parametrize("nested", [False, True])
def test_batches_reach_the_closed_form(nested: bool) -> None:
    """Run 1 shares run 0's nuisance; then run 0 comes again, with noise of its own."""
    batch = [0, 1, 0]
    found = []
    for seed in range(REPLICATES):
        outcomes, g = gaussian(1500, seed)
        goal = Values((g[:, None],))
        rng = np.random.default_rng([seed, 1])
        if nested:
            steps = nested_along(outcomes, goal, batch, rng, outer=300)
        else:
            steps = along(outcomes, goal, batch, seed)
        found.append([s.gain for s in steps])
    truth = np.diff([closed(batch[:i]) for i in range(4)])
    for gain, value in zip(np.array(found).T, truth, strict=True):
        assert agrees(gain, value, errors=3), (gain.mean(), value)  # six at once
    # A replicate adds the little that its own noise leaves, not what the first run told.
    assert truth[2] < 0.25 * truth[0]
    assert not agrees(np.array(found)[:, 2], truth[0])


# ------------------------------------------------------------------ what must be zero


@ESTIMATORS
@pytest.mark.parametrize("winner", [False, True])
def test_what_cannot_inform_gains_nothing(estimator: Estimator, winner: bool) -> None:
    assert RUNS[USELESS] @ A == 0
    gain, error = replicates(estimator, winner, USELESS)
    mean_error = gain.std(ddof=1) / np.sqrt(len(gain))
    assert abs(gain.mean()) < 3 * mean_error + 2e-4
    assert (gain > -4 * error - 1e-3).all()  # never significantly negative
    # Control: the same bands notice a run that informs a little, a fiftieth of the others.
    informing, _ = replicates(estimator, winner, 0, noise=9.0)
    assert abs(informing.mean()) > 3 * mean_error + 2e-4


def test_a_column_without_spread_tells_nothing() -> None:
    outcomes, g = gaussian(500, 0)
    still = Outcomes(np.zeros_like(outcomes.expected), outcomes.scale, outcomes.df)
    start = regression(still, Values((g[:, None],)), np.random.default_rng(99))
    np.testing.assert_allclose(start.gains(np.arange(4)), 0, atol=1e-12)
    one = Contests((np.column_stack([g - 100, g]),))  # who wins is known already
    start = regression(outcomes, one, np.random.default_rng(99))
    np.testing.assert_array_equal(start.gains(np.arange(4)), 0)
    np.testing.assert_array_equal(start.screen(), 0)


# ------------------------------------------------------------------ pieces


def test_normal_scores_keep_order_and_are_normal() -> None:
    x = np.random.default_rng(0).standard_cauchy((999, 2))
    z = normal_scores(x)
    np.testing.assert_array_equal(z.argsort(axis=0), x.argsort(axis=0))
    np.testing.assert_allclose(np.sort(z[:, 0]), norm.ppf((np.arange(999) + 0.5) / 999))


def test_student_noise_meets_the_normal() -> None:
    x, scale = np.linspace(-3, 3, 7), np.full(7, 0.7)
    limit = log_student(x, scale, np.full(7, np.inf))
    np.testing.assert_allclose(limit, norm.logpdf(x, scale=0.7), rtol=1e-12)
    np.testing.assert_allclose(log_student(x, scale, np.full(7, 1e7)), limit, rtol=1e-5)


def test_gains_do_not_depend_on_other_candidates() -> None:
    outcomes, g = gaussian(800, 0)
    for goal in (Values((g[:, None],)), two_methods(g)):
        every = regression(outcomes, goal, np.random.default_rng(99))
        alone = regression(
            outcomes.take(slice(None), np.array([1])), goal, np.random.default_rng(99)
        )
        np.testing.assert_allclose(
            every.gains(np.array([1])), alone.gains(np.array([0])), rtol=1e-4
        )


def test_a_goal_listed_twice_doubles_nothing() -> None:
    outcomes, g = gaussian(800, 0)
    for goal, twice in (
        (Values((g[:, None],)), Values((g[:, None], g[:, None]))),
        (two_methods(g), Contests(2 * two_methods(g).blocks)),
    ):
        one, two = (regression(outcomes, x, np.random.default_rng(99)) for x in (goal, twice))
        np.testing.assert_allclose(one.gains(np.arange(4)), two.gains(np.arange(4)), atol=1e-5)


def test_the_screen_is_close_to_the_gain() -> None:
    """Rao's statistic is of second order: 15 % for the gains here, and the same order of runs."""
    outcomes, g = gaussian(4000, 0)
    start = regression(outcomes, two_methods(g), np.random.default_rng(99), 2)
    for state in (start, start.given(2)):
        gains, screen = state.gains(np.arange(4)), state.screen()
        np.testing.assert_allclose(screen, gains, rtol=0.15, atol=0.01)
    assert (np.argsort(start.screen()) == np.argsort(start.gains(np.arange(4)))).all()


def test_a_batch_that_tells_all_names_the_right_winner() -> None:
    outcomes, g = gaussian(2000, 0)
    sure = Outcomes(g[:, None], np.full((2000, 1), 1e-3), outcomes.df)
    start = regression(sure, two_methods(g), np.random.default_rng(99))
    before = max(p := float((g < -MARGIN).mean()), 1 - p)
    assert start.right_winner() == pytest.approx([before], abs=1e-3)
    after = start.given(0)
    assert after.right_winner()[0] > 0.98
    assert 0 <= after.regret()[0] < 0.01 * start.regret()[0]


# ------------------------------------------------------------------ batches


def pool(seed: int, n: int = 8) -> tuple[Regression, np.ndarray]:
    """A small pool of runs with costs, and a goal of two values."""
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal((1000, 5))
    b = rng.standard_normal((5, n))
    outcomes = Outcomes(theta @ b, np.full((1000, n), 0.7), np.full(1000, np.inf))
    goal = Values((theta[:, :1], theta[:, 1:2]))
    return regression(outcomes, goal, rng, n), rng.uniform(0.5, 2.0, n)


def gain_of(start: Regression, batch: tuple[int, ...]) -> float:
    total, state = 0.0, start
    for i in batch:
        total += state.gains(np.array([i]))[0]
        state = state.given(i)
    return total


@pytest.mark.parametrize("seed", range(6))
def test_greedy_is_near_the_best_of_all_batches(seed: int) -> None:
    start, costs = pool(seed)
    budget = 4.0
    batch = choose(start, costs, budget, 8, np.arange(8))
    found = gain_of(start, batch.chosen)
    assert costs[list(batch.chosen)].sum() <= budget
    assert sum(batch.gains) == pytest.approx(found, rel=1e-6)
    every = (c for k in range(1, 8) for c in itertools.combinations(range(8), k))
    best = max(gain_of(start, c) for c in every if costs[list(c)].sum() <= budget)
    assert found >= (1 - np.exp(-1)) / 2 * best  # Leskovec et al. 2007, theorem 3
    assert batch.risen or batch.share_of_best <= found / best + 1e-9
    # Control: the worst batch that spends as much falls below it.
    affordable = [c for c in itertools.combinations(range(8), 3) if costs[list(c)].sum() <= budget]
    assert min(gain_of(start, c) for c in affordable) < 0.8 * best


def test_the_same_run_is_bought_once() -> None:
    start, costs = pool(0)
    groups = np.array([0, 0, 0, 0, 1, 1, 2, 3])
    batch = choose(start, costs, 100.0, 8, groups)
    assert len(batch.chosen) == 4
    assert sorted(groups[list(batch.chosen)]) == [0, 1, 2, 3]
    assert len(choose(start, costs, 100.0, 8, np.arange(8)).chosen) > 4  # control


def test_a_budget_is_spent() -> None:
    """Without one, the batch ends where the next run adds a thousandth of a nat."""
    start, costs = pool(1)
    quiet = replace(start, noise=start.noise * 2e4)  # no run tells half of that
    assert 0 < quiet.screen().max() < WORTH
    assert not choose(quiet, costs, np.inf, 8, np.arange(8)).chosen
    batch = choose(quiet, costs, 4.0, 8, np.arange(8))
    assert batch.chosen
    assert 4.0 - costs.min() < costs[list(batch.chosen)].sum() <= 4.0


def test_entropy_is_what_a_contest_has_left_to_tell() -> None:
    even, settled = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])
    assert Contests((settled,)).entropy() == 0
    np.testing.assert_allclose(Contests((even, settled)).entropy(), np.log(2) / 2)


def test_differences_of_settled_contests_are_left_out() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 1000))
    close, settled = np.column_stack([a, b]), np.column_stack([a, b + 9])
    three = np.column_stack([a, b, a + 9])
    blocks = differences(Contests((close, settled, three))).blocks
    assert len(blocks) == 2
    np.testing.assert_array_equal(blocks[0][:, 0], a - b)
    np.testing.assert_array_equal(blocks[1][:, 0], a - b)
    rare = np.column_stack([a, a + np.where(np.arange(1000) < 5, -1, 1)])
    assert len(differences(Contests((settled, rare))).blocks) == 1  # where nothing is open


def test_complements_are_found() -> None:
    """Two runs share a large nuisance, and only their difference tells the goal."""
    rng = np.random.default_rng(1)
    g, nuisance, other = rng.standard_normal((3, 3000))
    f = np.column_stack([5 * nuisance + g, 5 * nuisance, other + 0.3 * g])
    outcomes = Outcomes(f, np.full(f.shape, 0.2), np.full(3000, np.inf))
    for goal in (Values((g[:, None],)), two_methods(g)):
        start = regression(outcomes, goal, rng, 3)
        first = start.gains(np.arange(3))
        then = start.given(0).gains(np.arange(3))
        assert then[1] > 5 * max(first[1], 0.01)
        batch = choose(start, np.ones(3), 2.0, 2, np.arange(3))
        assert batch.risen > 0


# ------------------------------------------------------------------ our law


def test_the_estimators_agree_on_our_law(
    ladder: pd.DataFrame, believed: Callable[..., Fit]
) -> None:
    """With draws of the prior; run noise is raised so that every outcome leaves draws enough."""
    fit = believed(ladder, size=1500)
    place = {"task": "debian-en-de", "model_size": 4e6, "finetune_examples": 6e3}
    targets = ready_targets(fit, pd.DataFrame([place]))
    rows = [
        {**place, "method": m, "base_model": b, "model_size": s}
        for m in ("fmt", "lora")
        for b, s in (("ladder-1.2m", 1240480.0), ("", 4e6), ("other", 4e6))
    ]
    candidates = ready_candidates(fit, pd.DataFrame(rows))
    outcomes, ahead = joint_draws(fit, candidates, targets, 0)
    assert ahead is not None
    loud = Outcomes(outcomes.expected, 20 * outcomes.scale, outcomes.df)
    contests = contests_of(fit.members[0].layout, targets)
    blocks = tuple(ahead.expected[:, rows] for rows in contests)
    checked = 0
    # The second goal is also the outcome of a candidate, but for its noise: the largest of gains.
    for goal in (Contests(blocks), Values((blocks[0][:, :1],))):
        nested = Nested(loud, goal, np.random.default_rng(99), outer=500)
        for i in range(len(rows)):
            exact, bound = nested.gain(i), along(loud, goal, [i], 0)[0]
            error = np.hypot(exact.error, bound.error)
            # Scales of noise, which the prior leaves open over a decade, are where they differ.
            assert abs(bound.gain - exact.gain) < 0.4 * exact.gain + 4 * error, (i, exact, bound)
            checked += exact.gain > 4 * exact.error
    assert checked >= 4  # of them are large enough to disagree about
