"""Crossings of two methods' curves, on closed forms and on draws from the prior."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from changed import lowered
from known_forecaster import TwoPowerLaws
from scipy.stats import norm

from tunecast.models.errors import TunecastError
from tunecast.models.fits.fit import Fit
from tunecast.models.questions.crossover import crossings, crossover

type MakeFit = Callable[..., Fit]


def test_two_power_laws_cross_where_their_formulas_say() -> None:
    """3 D^-0.5 = 0.3 D^-0.25 at D = 10^4, once; with equal amplitudes at D = 1, out of range."""
    x = np.log(np.geomspace(10, 1e7, 400))
    pairs = [(3.0, 0.5, 0.3, 0.25), (1.0, 0.5, 1.0, 0.25)]
    gap = np.array([np.log(a / b) + (q - p) * x for a, p, b, q in pairs])
    count, first = crossings(x, gap)
    assert count.tolist() == [1, 0]
    assert first[0] == pytest.approx(np.log(1e4), abs=1e-9)  # the gap is linear in log D
    assert np.isnan(first[1])


def test_none_one_two_and_three_roots() -> None:
    x = np.linspace(0, 4, 801)
    step = x[1] - x[0]
    gap = np.array([0 * x + 1, x - 1.234, (x - 0.5) * (x - 2.5), (x - 1) * (x - 2) * (x - 3.001)])
    count, first = crossings(x, gap)
    assert count.tolist() == [0, 1, 2, 3]
    # Linear interpolation of a curve errs by less than step^2 times its curvature over its slope.
    np.testing.assert_allclose(first[1:], [1.234, 0.5, 1.0], atol=2 * step**2)


def test_touching_zero_is_no_crossing() -> None:
    x = np.arange(5.0)
    gap = np.array([[2.0, 1, 0, 1, 2], [2, 1, 0, -1, -2], [-1, 0, 0, 0, -1]])
    before = gap.copy()
    count, first = crossings(x, gap)
    assert count.tolist() == [0, 1, 0]
    assert first[1] == 2
    np.testing.assert_array_equal(gap, before)


def test_crossover_counts_the_crossings_of_the_expected_draws(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    fit = believed(ladder, size=400)
    place: dict[str, Any] = {"model_size": 4e5, "base_model": "new"}
    row = crossover(fit, "fmt", "lora", low=100, high=1e5, points=60, **place).iloc[0]
    assert row["p_none"] + row["p_one"] + row["p_two"] + row["p_more"] == pytest.approx(1)
    grid = np.geomspace(100, 1e5, 60)
    drawn = [
        fit.draws(
            pd.DataFrame({"task": "debian-en-de", "method": m, "finetune_examples": grid, **place})
        ).expected
        for m in ("fmt", "lora")
    ]
    sign = np.sign(drawn[0] - drawn[1])
    changes = (sign[:, 1:] != sign[:, :-1]).sum(axis=1)
    assert row["p_none"] == pytest.approx((changes == 0).mean())
    assert row["p_two"] == pytest.approx((changes == 2).mean())
    assert row["p_a_below_at_low"] == pytest.approx((sign[:, 0] < 0).mean())
    assert row["p_a_below_at_high"] == pytest.approx((sign[:, -1] < 0).mean())
    quantiles = row[[f"first_q{q}" for q in ("05", "25", "50", "75", "95")]].to_numpy(float)
    assert 100 <= quantiles[0] and quantiles[-1] <= 1e5 and (np.diff(quantiles) >= 0).all()
    # Of the first crossing of every draw that crosses, once or more often.
    count, first = crossings(np.log(grid), drawn[0] - drawn[1])
    assert row["first_q50"] == pytest.approx(np.median(np.exp(first[count > 0])), rel=1e-12)
    assert row["p_two"] > 0 and np.median(first[count == 1]) != np.median(first[count > 0])
    mirrored = crossover(fit, "lora", "fmt", low=100, high=1e5, points=60, **place).iloc[0]
    assert mirrored["first_q50"] == pytest.approx(row["first_q50"], rel=1e-12)
    assert mirrored["p_a_below_at_low"] == pytest.approx(1 - row["p_a_below_at_low"])


def test_a_method_far_below_never_crosses(ladder: pd.DataFrame, believed: MakeFit) -> None:
    row = crossover(lowered(believed(ladder), "fmt"), "fmt", "lora", model_size=4e5).iloc[0]
    assert (row["p_none"], row["p_a_below_at_low"], row["p_a_below_at_high"]) == (1, 1, 1)
    assert np.isnan(row["first_q50"])
    sizes = ladder["finetune_examples"]
    assert row["low"] == pytest.approx(sizes.min() / 10)
    assert row["high"] == pytest.approx(sizes.max() * 10)


@pytest.mark.parametrize(
    ("a", "b", "options", "match"),
    [
        ("fmt", "magic", {}, "unknown method 'magic': the runs have fmt, lora, prompt"),
        ("fmt", "fmt", {}, "two different methods, got 'fmt' twice"),
        ("fmt", "lora", {"low": 100, "high": 10}, "is 100 to 10, expected 0 < low < high"),
        ("fmt", "lora", {"low": 0}, "is 0 to "),
    ],
)
def test_a_crossover_that_makes_no_sense_is_refused(
    ladder: pd.DataFrame, believed: MakeFit, a: str, b: str, options: Any, match: str
) -> None:
    with pytest.raises(TunecastError, match=match):
        crossover(believed(ladder, size=2), a, b, **options)


def test_a_crossover_over_several_tasks_needs_one(zhang: pd.DataFrame, believed: MakeFit) -> None:
    with pytest.raises(TunecastError, match="name a task: one of mlsum, wmt14-en-de, "):
        crossover(believed(zhang, size=2), "fmt", "lora")


def test_the_crossover_of_a_known_forecaster_is_the_closed_form() -> None:
    """Curves meet at log D = log 1000 + gap / 0.2, normal about 1000 e; within the range or not."""
    known = TwoPowerLaws(mean=0.2, sd=0.1)
    row = crossover(known, "fast", "slow", low=1000, high=1e6).iloc[0]
    within = norm.cdf((0.2 * np.log(1000) - 0.2) / 0.1) - norm.cdf(-2)  # a gap of 0 is at 1000
    assert row["p_one"] == pytest.approx(within, abs=1 / 2000)
    assert row["p_none"] == pytest.approx(1 - within, abs=1 / 2000)
    assert row["p_two"] == row["p_more"] == 0
    assert row["p_a_below_at_low"] == pytest.approx(norm.cdf(-2), abs=1 / 2000)
    assert row["p_a_below_at_high"] == 1
    for name, q in (("q05", 0.05), ("q50", 0.5), ("q95", 0.95)):
        gap = 0.2 + 0.1 * norm.ppf(norm.cdf(-2) + q * within)
        expected = np.log(1000) + gap / 0.2
        # The gap of the curves is linear in log D, so the grid adds no error.
        assert np.log(row[f"first_{name}"]) == pytest.approx(expected, abs=0.01)
    # Its own range: ten times beyond the runs on both sides.
    wide = crossover(known, "fast", "slow").iloc[0]
    assert (wide["low"], wide["high"]) == pytest.approx((10, 1e6))
    assert wide["p_one"] == pytest.approx(1, abs=1 / 2000)
