"""Goals of a plan, and the pieces that gains are estimated from."""

import numpy as np
import pytest
from linear_gaussian import MARGIN, gaussian, two_methods
from scipy.stats import norm

from tunecast.models.planning.conditioning import unconditioned
from tunecast.models.planning.goals import ContinuousGoal, WinnerGoal, pairwise_differences
from tunecast.models.planning.outcomes import Outcomes, student_t_logpdf
from tunecast.models.planning.scores import normal_scores
from tunecast.models.planning.winners import winner_regression


def test_normal_scores_keep_order_and_are_normal() -> None:
    x = np.random.default_rng(0).standard_cauchy((999, 2))
    z = normal_scores(x)
    np.testing.assert_array_equal(z.argsort(axis=0), x.argsort(axis=0))
    np.testing.assert_allclose(np.sort(z[:, 0]), norm.ppf((np.arange(999) + 0.5) / 999))


def test_student_noise_meets_the_normal() -> None:
    x, scale = np.linspace(-3, 3, 7), np.full(7, 0.7)
    limit = student_t_logpdf(x, scale, np.full(7, np.inf))
    np.testing.assert_allclose(limit, norm.logpdf(x, scale=0.7), rtol=1e-12)
    np.testing.assert_allclose(student_t_logpdf(x, scale, np.full(7, 1e7)), limit, rtol=1e-5)


def test_a_batch_that_tells_all_names_the_right_winner() -> None:
    outcomes, g = gaussian(2000, 0)
    sure = Outcomes(g[:, None], np.full((2000, 1), 1e-3), outcomes.df)
    start = winner_regression(unconditioned(sure, np.random.default_rng(99), 1), two_methods(g))
    before = max(p := float((g < -MARGIN).mean()), 1 - p)
    assert start.probability_right() == pytest.approx([before], abs=1e-3)
    after = start.conditioned_on(0)
    assert after.probability_right()[0] > 0.98
    assert 0 <= after.expected_regret()[0] < 0.01 * start.expected_regret()[0]


def test_the_entropy_of_the_winner_is_all_that_can_be_learned() -> None:
    even, decided = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])
    assert WinnerGoal((decided,)).max_information() == 0
    np.testing.assert_allclose(WinnerGoal((even, decided)).max_information(), np.log(2) / 2)
    assert ContinuousGoal((even,)).max_information() == np.inf


def test_differences_of_decided_pairs_are_left_out() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 1000))
    close, decided = np.column_stack([a, b]), np.column_stack([a, b + 9])
    three = np.column_stack([a, b, a + 9])
    blocks = pairwise_differences(WinnerGoal((close, decided, three))).blocks
    assert len(blocks) == 2
    np.testing.assert_array_equal(blocks[0][:, 0], a - b)
    np.testing.assert_array_equal(blocks[1][:, 0], a - b)
    rare = np.column_stack([a, a + np.where(np.arange(1000) < 5, -1, 1)])
    # Where nothing is open, what is least decided.
    assert len(pairwise_differences(WinnerGoal((decided, rare))).blocks) == 1
