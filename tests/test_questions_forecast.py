"""Tables of forecasts, on draws from the prior."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from known_forecaster import DRAWS, TwoPowerLaws
from scipy.stats import norm

from tunecast.models.fits.fit import Fit
from tunecast.models.questions.forecast import forecast

type MakeFit = Callable[..., Fit]


def test_a_forecast_table_holds_the_quantiles_of_the_draws(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    fit = believed(ladder)
    targets = pd.DataFrame({"task": "debian-en-de", "method": ["fmt", "lora"], "note": ["a", "b"]})
    targets = targets.assign(model_size=1e6, base_model="new", finetune_examples=5e3)
    table, draws = forecast(fit, targets), fit.draws(targets)
    np.testing.assert_array_equal(table["loss_mean"], draws.loss.mean(axis=0))
    np.testing.assert_array_equal(table["loss_q05"], np.quantile(draws.loss, 0.05, axis=0))
    np.testing.assert_array_equal(table["expected_q95"], np.quantile(draws.expected, 0.95, axis=0))
    assert list(table.columns[: targets.shape[1]]) == list(targets.columns)
    assert table["converged"].tolist() == [True, True] and "simulated" not in table


def test_doubtful_fits_mark_their_forecasts(ladder: pd.DataFrame, believed: MakeFit) -> None:
    fit = believed(ladder)
    bad = replace(fit.diagnostics, rhat_max=1.5)
    doubtful = replace(fit, diagnostics=bad, info={**fit.info, "simulated": True})
    table = forecast(doubtful, ladder.head(2))
    assert table["converged"].tolist() == [False, False]
    assert table["simulated"].tolist() == [True, True]


def test_quantiles_of_a_known_forecaster_are_the_closed_form() -> None:
    """Of the mean without Monte Carlo error, of a run to four of its errors."""
    known = TwoPowerLaws(mean=0.2, sd=0.1, noise=0.05)
    target = pd.DataFrame({"task": ["t"], "method": ["fast"], "finetune_examples": [1e4]})
    row = forecast(known, target, seed=1).iloc[0]
    middle = 0.2 - 0.3 * np.log(10)
    for name, q in (("q05", 0.05), ("q50", 0.5), ("q95", 0.95)):
        z = norm.ppf(q)
        apart = 0.1 / DRAWS / norm.pdf(z)  # two neighbouring draws of the mean
        assert np.log(row[f"expected_{name}"]) == pytest.approx(middle + 0.1 * z, abs=apart)
        sd = np.hypot(0.1, 0.05)
        error = 4 * sd * np.sqrt(q * (1 - q) / DRAWS) / norm.pdf(z)
        assert np.log(row[f"loss_{name}"]) == pytest.approx(middle + sd * z, abs=error)
    # The control: a run varies by more than its mean.
    assert row["loss_q95"] > row["expected_q95"] * np.exp(0.01)


def test_another_seed_is_asked_for_by_number(ladder: pd.DataFrame, believed: MakeFit) -> None:
    fit = believed(ladder)
    new = ladder.head(1).assign(base_model="new")
    pd.testing.assert_frame_equal(forecast(fit, new), forecast(fit, new, seed=fit.info["seed"]))
    assert forecast(fit, new)["loss_mean"].item() != forecast(fit, new, seed=9)["loss_mean"].item()
