"""Scores against closed forms, and coverage that a wrong forecast does not reach."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, norm

from tunecast.models.scoring import COVERAGES, crps, log_score, score_draws, score_table


def ensemble(mean: np.ndarray, sd: float, n: int = 4000) -> np.ndarray:
    """The n middle quantiles of normals: draws without Monte Carlo error."""
    return mean + sd * norm.ppf((np.arange(n) + 0.5) / n)[:, None]


def test_crps_of_a_normal_is_the_closed_form() -> None:
    """Gneiting and Raftery 2007, eq. 21; n quantiles miss the tails beyond 1 / n only."""
    y, sd = np.array([-2.0, -0.3, 0.0, 0.5, 4.0]), 0.7
    z = y / sd
    exact = sd * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    np.testing.assert_allclose(crps(ensemble(0 * y, sd), y), exact, atol=2 * sd / 4000)


def test_crps_of_two_draws_by_hand() -> None:
    """E|X - y| - E|X - X'| / 2 over draws 0 and 1: 0.5 - 0.25 inside, 1.5 - 0.25 at 2."""
    draws = np.array([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(crps(draws, np.array([0.5, 2.0])), [0.25, 1.25], rtol=1e-14)


def test_log_score_of_a_normal() -> None:
    """A Gaussian kernel widens a normal by its bandwidth, 0.9 n^-0.2 of it at most: known exactly.

    0.9 sd n^-0.2 is 0.171 at n = 4000; the range over 1.34 is 1.0067 sd, so sd is the minimum.
    """
    y, n = np.array([-2.0, 0.0, 0.7, 1.5]), 4000
    sd = np.hypot(1, 0.9 * n**-0.2)
    got = log_score(ensemble(0 * y, 1.0, n), y)
    exact = np.log(0.999 * norm.pdf(y, 0, sd) + 0.001 * norm.pdf(y, 0, 5))
    np.testing.assert_allclose(got, exact, atol=2e-3)


def test_a_miss_costs_a_bounded_log_score() -> None:
    got = log_score(ensemble(np.zeros(2), 0.01), np.array([0.0, 0.2]))
    assert got[0] > 3
    assert got[1] == pytest.approx(np.log(0.001) + norm.logpdf(0.2, 0, 0.05), abs=0.01)


def forecasts(width: float) -> pd.Series:
    """Scores of forecasts with ``width`` times the true sd for 1000 independent rows."""
    rng, n, sd = np.random.default_rng(8), 1000, 0.05
    centre = rng.normal(0.5, 0.3, n)
    observed = np.exp(centre + sd * rng.standard_normal(n))
    return score_draws(np.exp(ensemble(centre, width * sd, 500)), observed).iloc[0]


def test_coverage_of_a_calibrated_forecast_and_of_a_narrow_one() -> None:
    """Exact binomial bands at alpha = 1e-4. Control: sd x 0.7 covers 63 % at 80 %, power near 1."""
    good, narrow = forecasts(1.0), forecasts(0.7)
    for nominal in COVERAGES:
        low, high = binom.interval(1 - 1e-4, 1000, nominal)
        name = f"cover{round(100 * nominal)}"
        assert low <= 1000 * good[name] <= high
        assert 1000 * narrow[name] < low
        assert narrow[name] < narrow[f"{name}_low"]
    assert good["crps"] < narrow["crps"]
    assert good["log_score"] > narrow["log_score"]


def test_bands_are_the_exact_binomial_ones() -> None:
    row = score_draws(np.exp(ensemble(np.zeros(40), 0.1)), np.ones(40)).iloc[0]
    for nominal in COVERAGES:
        low, high = (float(binom.ppf(tail, 40, nominal)) for tail in (0.025, 0.975))
        name = f"cover{round(100 * nominal)}"
        assert (row[f"{name}_low"], row[f"{name}_high"]) == (low / 40, high / 40)


def test_scores_by_group_are_those_of_the_group_alone() -> None:
    rng = np.random.default_rng(1)
    draws, y = np.exp(rng.normal(size=(100, 6))), np.exp(rng.normal(size=6))
    groups = pd.DataFrame({"method": list("abaabb"), "task": ["t"] * 6}, index=range(10, 16))
    table = score_draws(draws, y, groups).set_index("group")
    assert list(table.index) == ["all", "method=a", "method=b", "task=t"]
    own = [0, 2, 3]
    alone = score_draws(draws[:, own], y[own]).iloc[0]
    assert table.loc["method=a", "n"] == 3
    assert table.loc["method=a", "crps"] == pytest.approx(alone["crps"], rel=1e-12)
    np.testing.assert_allclose(
        table.loc["all"].to_numpy(float), table.loc["task=t"].to_numpy(float), rtol=1e-12
    )


def test_bias_has_the_sign_of_the_forecast() -> None:
    table = score_draws(np.exp(ensemble(np.full(5, 0.1), 0.01)), np.ones(5))
    assert table.loc[0, "bias"] == pytest.approx(0.1, abs=1e-6)
    assert table.loc[0, "rmse"] == pytest.approx(0.1, abs=1e-6)


# ------------------------------------------------------------------ forecast tables


def forecast_table() -> pd.DataFrame:
    """Forecasts of the loss: normal around 2 and 3 with sd 0.1 for two data sizes."""
    frame = pd.DataFrame(
        {"task": "t", "method": "fmt", "finetune_examples": [100.0, 200.0], "base_model": pd.NA}
    )
    mean = np.array([2.0, 3.0])
    frame["loss_mean"], frame["loss_sd"] = mean, 0.1
    for level in (0.05, 0.25, 0.5, 0.75, 0.95):
        frame[f"loss_q{round(100 * level):02d}"] = mean + 0.1 * norm.ppf(level)
    return frame


def landed() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "task": "t",
            "method": ["fmt", "fmt", "lora", "fmt"],
            "finetune_examples": [100.0, 200.0, 100.0, 400.0],
            "base_model": "b",
            "status": "done",
            "loss": [2.0, 3.2, 9.0, 9.0],
        }
    )


def test_forecasts_meet_the_runs_on_the_complete_shared_columns() -> None:
    """Two of four runs match: the incomplete base_model is no key; the second misses by 2 sd."""
    row = score_table(forecast_table(), landed()).iloc[0]
    assert row["n"] == 2
    assert row["cover50"] == 0.5 and row["cover90"] == 0.5
    assert row["bias"] == pytest.approx(np.log(3 / 3.2) / 2, abs=1e-12)
    # The density of log L is that of L times L.
    exact = (norm.logpdf(2.0, 2, 0.1) + np.log(2) + norm.logpdf(3.2, 3, 0.1) + np.log(3.2)) / 2
    assert row["log_score"] == pytest.approx(exact, rel=1e-9)
    assert "cover80" not in row


def test_failed_runs_do_not_count() -> None:
    runs = landed().assign(status=["done", "failed", "done", "done"])
    assert score_table(forecast_table(), runs)["n"].tolist() == [1]


def test_five_quantiles_approach_the_crps() -> None:
    """Pinball loss at five levels, doubled: by hand for one row, in logs."""
    row = score_table(forecast_table().iloc[:1], landed()).iloc[0]
    total = 0.0
    for level in (0.05, 0.25, 0.5, 0.75, 0.95):
        gap = np.log(2.0) - np.log(2 + 0.1 * norm.ppf(level))
        total += 2 * max(level * gap, (level - 1) * gap)
    assert row["crps"] == pytest.approx(total / 5, rel=1e-9)


@pytest.mark.parametrize(
    ("forecasts", "runs", "match"),
    [
        (forecast_table().drop(columns="loss_q25"), landed(), r"lacks \['loss_q25'\]"),
        (forecast_table().drop(columns="method"), landed(), "share no complete columns"),
        (forecast_table().assign(task="other"), landed(), "no run matches a forecast on task"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    forecasts: pd.DataFrame, runs: pd.DataFrame, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        score_table(forecasts, runs)
