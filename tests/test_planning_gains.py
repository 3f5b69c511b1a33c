"""Expected information gains by both estimators, where closed forms exist."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from linear_gaussian import (
    RUNS,
    USELESS,
    A,
    closed_form,
    closed_form_of_winner,
    gaussian,
    two_methods,
)

from tunecast.models.fits.fit import Fit
from tunecast.models.planning.candidates import (
    comparison_rows,
    complete_candidates,
    complete_targets,
)
from tunecast.models.planning.estimates import GainEstimate
from tunecast.models.planning.goals import ContinuousGoal, Goal, WinnerGoal
from tunecast.models.planning.nested import NestedMonteCarlo, nested_conditional_gains
from tunecast.models.planning.outcomes import Outcomes, joint_predictive_draws
from tunecast.models.planning.regression import conditional_gains, gain_estimator


def by_regression(
    outcomes: Outcomes, goal: Goal, run: int, seed: int, jackknife: bool = True
) -> GainEstimate:
    return conditional_gains(outcomes, goal, [run], seed, jackknife=jackknife)[0]


def by_nesting(
    outcomes: Outcomes, goal: Goal, run: int, seed: int, jackknife: bool = True
) -> GainEstimate:
    rng = np.random.default_rng([seed, 1])
    return NestedMonteCarlo(outcomes, goal, rng, 400, jackknife=jackknife).gain(run)


type Estimator = Callable[[Outcomes, Goal, int, int, bool], GainEstimate]
ESTIMATORS = pytest.mark.parametrize("estimator", [by_regression, by_nesting])
REPLICATES = 10


def replicates(
    estimator: Estimator,
    winner: bool,
    run: int,
    *,
    draws: int = 1200,
    noise: float = 1.0,
    jackknife: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Return estimates and their standard errors over independent sets of draws."""
    found = []
    for seed in range(REPLICATES):
        outcomes, g = gaussian(draws, seed, noise)
        goal: Goal = two_methods(g) if winner else ContinuousGoal((g[:, None],))
        estimate = estimator(outcomes, goal, run, seed, jackknife)
        found.append((estimate.gain, estimate.mcse))
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
def test_continuous_goals_reach_the_closed_form(estimator: Estimator, run: int) -> None:
    gain, error = replicates(estimator, False, run, draws=2000)
    assert agrees(gain, closed_form([run]), percent=2), (gain.mean(), closed_form([run]))
    # Standard errors tell the spread between sets of draws: ten of them know it to a quarter.
    assert 0.5 < error.mean() / gain.std(ddof=1) < 2


@ESTIMATORS
def test_winners_reach_the_closed_form(estimator: Estimator) -> None:
    gain, error = replicates(estimator, True, 0, draws=2000)
    # Winners of 400 outcomes are known to 3 % by so many replicates, whatever the estimator.
    percent = 2 if estimator is by_regression else np.inf
    truth = closed_form_of_winner(0)
    assert agrees(gain, truth, percent=percent), (gain.mean(), truth)
    assert 0.5 < error.mean() / gain.std(ddof=1) < 2


@ESTIMATORS
@pytest.mark.parametrize("winner", [False, True])
def test_control_the_wrong_noise_is_noticed(estimator: Estimator, winner: bool) -> None:
    gain, _ = replicates(estimator, winner, 0, noise=0.7, jackknife=False)
    assert not agrees(gain, closed_form_of_winner(0) if winner else closed_form([0]))


@ESTIMATORS
def test_control_a_nuisance_taken_as_known_is_noticed(estimator: Estimator) -> None:
    """Holding the base model's effect fixed makes a run look more telling than it is."""
    found = []
    for seed in range(REPLICATES):
        outcomes, g = gaussian(1500, seed)
        theta = np.random.default_rng(seed).standard_normal((1500, 3))
        fixed = Outcomes(outcomes.expected - 0.8 * theta[:, [2]], outcomes.scale, outcomes.df)
        found.append(estimator(fixed, ContinuousGoal((g[:, None],)), 0, seed, False).gain)
    assert not agrees(np.array(found), closed_form([0]))
    assert np.mean(found) > 1.1 * closed_form([0])


@pytest.mark.parametrize("nested", [False, True])
def test_batches_reach_the_closed_form(nested: bool) -> None:
    """Run 1 shares run 0's nuisance; then run 0 comes again, with noise of its own."""
    batch = [0, 1, 0]
    found = []
    for seed in range(REPLICATES):
        outcomes, g = gaussian(1500, seed)
        goal = ContinuousGoal((g[:, None],))
        rng = np.random.default_rng([seed, 1])
        if nested:
            steps = nested_conditional_gains(outcomes, goal, batch, rng, 300, jackknife=False)
        else:
            steps = conditional_gains(outcomes, goal, batch, seed, jackknife=False)
        found.append([s.gain for s in steps])
    truth = np.diff([closed_form(batch[:i]) for i in range(4)])
    for gain, value in zip(np.array(found).T, truth, strict=True):
        assert agrees(gain, value, errors=3), (gain.mean(), value)  # six at once
    # A replicate adds the little that its own noise leaves, not what the first run told.
    assert truth[2] < 0.25 * truth[0]
    assert not agrees(np.array(found)[:, 2], truth[0])


@ESTIMATORS
@pytest.mark.parametrize("winner", [False, True])
def test_errors_are_estimated_only_where_asked_for(estimator: Estimator, winner: bool) -> None:
    outcomes, g = gaussian(500, 0)
    goal: Goal = two_methods(g) if winner else ContinuousGoal((g[:, None],))
    with_error, without = (estimator(outcomes, goal, 0, 0, asked) for asked in (True, False))
    assert with_error.gain == without.gain
    assert with_error.mcse > 0
    assert np.isnan(without.mcse)


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
    informing, _ = replicates(estimator, winner, 0, noise=9.0, jackknife=False)
    assert abs(informing.mean()) > 3 * mean_error + 2e-4


def test_a_column_without_spread_tells_nothing() -> None:
    outcomes, g = gaussian(500, 0)
    still = Outcomes(np.zeros_like(outcomes.expected), outcomes.scale, outcomes.df)
    start = gain_estimator(still, ContinuousGoal((g[:, None],)), np.random.default_rng(99))
    np.testing.assert_allclose(start.gains(np.arange(4)), 0, atol=1e-12)
    one = WinnerGoal((np.column_stack([g - 100, g]),))  # who wins is known already
    start = gain_estimator(outcomes, one, np.random.default_rng(99))
    np.testing.assert_array_equal(start.gains(np.arange(4)), 0)
    np.testing.assert_array_equal(start.approximate_gains(), 0)


# ------------------------------------------------------------------ invariances


def test_gains_do_not_depend_on_other_candidates() -> None:
    outcomes, g = gaussian(800, 0)
    alone = outcomes.subset(slice(None), np.array([1]))
    for goal in (ContinuousGoal((g[:, None],)), two_methods(g)):
        of_every = gain_estimator(outcomes, goal, np.random.default_rng(99))
        of_one = gain_estimator(alone, goal, np.random.default_rng(99))
        np.testing.assert_allclose(
            of_every.gains(np.array([1])), of_one.gains(np.array([0])), rtol=1e-4
        )


def test_a_goal_listed_twice_doubles_nothing() -> None:
    outcomes, g = gaussian(800, 0)
    for goal, twice in (
        (ContinuousGoal((g[:, None],)), ContinuousGoal((g[:, None], g[:, None]))),
        (two_methods(g), WinnerGoal(2 * two_methods(g).blocks)),
    ):
        one, two = (gain_estimator(outcomes, x, np.random.default_rng(99)) for x in (goal, twice))
        np.testing.assert_allclose(one.gains(np.arange(4)), two.gains(np.arange(4)), atol=1e-5)


def test_approximate_gains_are_close_to_the_gains() -> None:
    """Rao's statistic is of second order: 15 % for the gains here, and the same order of runs."""
    outcomes, g = gaussian(4000, 0)
    start = gain_estimator(outcomes, two_methods(g), np.random.default_rng(99), 2)
    for state in (start, start.conditioned_on(2)):
        gains, approximate = state.gains(np.arange(4)), state.approximate_gains()
        np.testing.assert_allclose(approximate, gains, rtol=0.15, atol=0.01)
    assert (np.argsort(start.approximate_gains()) == np.argsort(start.gains(np.arange(4)))).all()


# ------------------------------------------------------------------ our law


def test_the_estimators_agree_on_our_law(
    ladder: pd.DataFrame, believed: Callable[..., Fit]
) -> None:
    """With draws of the prior; run noise is raised so that every outcome leaves draws enough."""
    fit = believed(ladder, size=1500)
    place = {"task": "debian-en-de", "model_size": 4e6, "finetune_examples": 6e3}
    targets = complete_targets(fit, pd.DataFrame([place]))
    rows = [
        {**place, "method": m, "base_model": b, "model_size": s}
        for m in ("fmt", "lora")
        for b, s in (("ladder-1.2m", 1240480.0), ("", 4e6), ("other", 4e6))
    ]
    candidates = complete_candidates(fit, pd.DataFrame(rows))
    outcomes, at_targets = joint_predictive_draws(fit, candidates, targets, 0)
    assert at_targets is not None
    loud = Outcomes(outcomes.expected, 20 * outcomes.scale, outcomes.df)
    comparisons = comparison_rows(fit.spec, targets)
    blocks = tuple(at_targets.expected[:, rows] for rows in comparisons)
    checked = 0
    # The second goal is also the outcome of a candidate, but for its noise: the largest of gains.
    for goal in (WinnerGoal(blocks), ContinuousGoal((blocks[0][:, :1],))):
        nested = NestedMonteCarlo(loud, goal, np.random.default_rng(99), 500)
        for i in range(len(rows)):
            exact, bound = nested.gain(i), conditional_gains(loud, goal, [i], 0)[0]
            error = np.hypot(exact.mcse, bound.mcse)
            # Scales of noise, which the prior leaves open over a decade, are where they differ.
            assert abs(bound.gain - exact.gain) < 0.4 * exact.gain + 4 * error, (i, exact, bound)
            checked += exact.gain > 4 * exact.mcse
    assert checked >= 4  # of them are large enough to disagree about
