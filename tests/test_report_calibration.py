"""The checks of a report: calibrated forecasts pass, wrong ones are seen."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
from conftest import with_losses
from thinned import THINNED

from tunecast.analysis.report.calibration import (
    CHECK_DRAWS,
    MOST_PARETO_K,
    _predictive,
    coverage_sentences,
    left_out,
    pit_without,
    predictive_check,
)
from tunecast.models import Fit


def test_runs_of_the_fit_itself_are_covered(drawn_fit: Fit) -> None:
    check = left_out(drawn_fit)
    for row in check.coverage():
        assert row["low"] <= row["actual"] <= row["high"], row
    counts, low, high = check.histogram()
    assert sum(b["count"] for b in counts) == len(drawn_fit.runs)
    assert 0 <= low < len(drawn_fit.runs) / len(counts) < high


def test_the_spread_of_a_run_alone_holds_the_deviations_of_its_curve(
    ladder: pd.DataFrame, believed: Callable[..., Fit]
) -> None:
    fit = believed(THINNED["one and all"](ladder), size=200)
    (posterior,) = fit.posteriors
    _, scale, _ = _predictive(fit)
    noise = posterior.values["noise"][posterior.share(CHECK_DRAWS)][:, posterior.table.run_curve]
    alone = posterior.table.run_alone == 1
    assert alone.any() and not alone.all()
    assert (scale[:, alone] > noise[:, alone]).all()
    np.testing.assert_array_equal(scale[:, ~alone], noise[:, ~alone])


def test_shifted_runs_are_not_covered(drawn_fit: Fit) -> None:
    wrong = with_losses(drawn_fit, drawn_fit.runs["loss"].to_numpy() * 1.5)
    ninety = left_out(wrong).coverage()[2]
    assert ninety["actual"] < ninety["low"]
    rows, _ = predictive_check(wrong)
    assert any(not r["q05"] <= r["observed"] <= r["q95"] for r in rows)


def test_leaving_out_equals_fitting_without() -> None:
    """A normal mean with a flat prior can be solved: y ~ N(m, 1), each y left out exactly."""
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    y, size = rng.normal(size=8), 100_000
    mean = np.broadcast_to(rng.normal(y.mean(), 1 / np.sqrt(8), size=(size, 1)), (size, 8))
    pit, pareto_k = pit_without(y, mean, np.ones((size, 8)), np.full((size, 1), 1e9))
    rest = (y.sum() - y) / 7
    without = norm.cdf((y - rest) / np.sqrt(1 + 1 / 7))
    naive = norm.cdf(y - mean).mean(axis=0)
    assert np.abs(pit - without).max() < 0.01
    assert np.abs(naive - without).max() > 0.03
    assert (pareto_k < MOST_PARETO_K).all()


def test_runs_that_hold_a_fit_alone_are_told_of(drawn_fit: Fit) -> None:
    """A draw near each run and all others far: whoever leaves the run out has nothing left."""
    rng = np.random.default_rng(0)
    mean = 4 * rng.normal(size=(1000, 6))
    _, pareto_k = pit_without(np.zeros(6), mean, np.ones((1000, 6)), np.full((1000, 1), 1e9))
    assert (pareto_k > MOST_PARETO_K).all()
    check = replace(left_out(drawn_fit), pareto_k=pareto_k)
    assert "for 6 of them a Pareto k above 0.7" in coverage_sentences([check])[0]
    assert "Pareto" not in coverage_sentences([replace(check, pareto_k=np.zeros(6))])[0]
