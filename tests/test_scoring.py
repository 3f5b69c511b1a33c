"""Scores against closed forms, and coverage that a wrong forecast does not reach."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, norm
from scipy.stats import t as student

from tunecast.models.hierarchy.predict import Draws
from tunecast.models.questions.scoring import (
    COVERAGES,
    crps,
    matched,
    score_draws,
    score_ensemble,
    score_table,
)


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


# ------------------------------------------------------------------ the density of a forecast


def draws_of(
    log_mean: np.ndarray, scale: np.ndarray | float, df: np.ndarray | float, seed: int = 0
) -> Draws:
    """Predictive draws of Student-t runs around log means, shape (draws, n)."""
    size, n = log_mean.shape
    scale, df = np.broadcast_to(scale, (size, n)), np.broadcast_to(df, size)
    z = np.random.default_rng(seed).standard_t(np.repeat(df[:, None], n, axis=1))
    loss = np.exp(log_mean + scale * z)
    return Draws(loss, np.exp(log_mean), np.ones(n), scale, df)


def two_humps(size: int = 300) -> Draws:
    """A forecast of two modes, of unequal widths and tails from draw to draw."""
    rng = np.random.default_rng(4)
    side = np.where(rng.random((size, 1)) < 0.3, -0.5, 0.2)
    mean = 0.4 + side + 0.03 * rng.standard_normal((size, 1))
    return draws_of(mean, rng.uniform(0.01, 0.05, (size, 1)), rng.uniform(2.5, 8.0, size))


def test_the_density_of_a_run_integrates_to_one() -> None:
    """Over log loss; the control, the density of the loss itself taken for it, does not."""
    # Fine where the modes are, and out to 20, beyond which are 1e-6 of a run with 2.5 degrees.
    far = np.arcsinh(20 / 0.02)
    x = 0.4 + 0.02 * np.sinh(np.linspace(-far, far, 4001))
    density = np.exp(two_humps().log_density(x))
    assert np.trapezoid(density, x) == pytest.approx(1, abs=1e-3)
    assert np.trapezoid(density * np.exp(-x), x) != pytest.approx(1, abs=0.05)


def test_the_density_of_a_run_is_that_of_many_of_its_draws() -> None:
    """Equal to a kernel estimate from 200,000 draws of a run, in both modes and between them.

    A kernel of width h errs by h^2 f'' / 2, below 3 % of the modes here; draws by less than that.
    Controls: the density of the first draw's distribution alone, and a normal of the same moments.
    """
    forecast = two_humps()
    x = np.array([-0.12, -0.1, -0.07, 0.3, 0.58, 0.6, 0.63])
    got = forecast.log_density(x)
    many = np.concatenate(
        [np.log(draws_of(np.log(forecast.expected), forecast.scale, forecast.df, s).loss[:, 0])
         for s in range(667)]
    )  # fmt: skip
    h = 0.004
    kernel = np.array([norm.pdf(v, many, h).mean() for v in x])
    sampling = np.sqrt(kernel / (2 * np.sqrt(np.pi) * h * len(many)))
    assert (np.abs(np.exp(got) - kernel) < 4 * sampling + 0.03 * kernel.max()).all()
    first = student.pdf(x, forecast.df[0], np.log(forecast.expected[0]), forecast.scale[0])
    moments = norm.pdf(x, many.mean(), many.std())
    for other in (first, moments):
        assert not (np.abs(other - kernel) < 4 * sampling + 0.03 * kernel.max()).all()


def test_the_log_score_of_one_distribution_is_its_log_density() -> None:
    """Draws that agree are one Student-t, and with many degrees of freedom a normal."""
    y = np.array([-2.0, 0.0, 0.7, 1.5])
    same = draws_of(np.zeros((50, 4)), 0.7, 5.0)
    np.testing.assert_allclose(same.log_density(y), student.logpdf(y, 5, 0, 0.7), rtol=1e-12)
    nearly = draws_of(np.zeros((50, 4)), 0.7, 1e7)
    np.testing.assert_allclose(nearly.log_density(y), norm.logpdf(y, 0, 0.7), rtol=1e-5)
    table = score_draws(same, np.exp(y))
    assert table["log_score"].item() == pytest.approx(student.logpdf(y, 5, 0, 0.7).mean())


def test_a_miss_costs_a_bounded_log_score() -> None:
    """Far off, as the logarithm of how far: tails are those of runs, (df + 1) nats for each e."""
    sure = draws_of(np.zeros((100, 4)), 0.01, 4.0)
    got = sure.log_density(np.array([0.0, 1.0, np.e, 1e6]))
    assert got[0] > 3
    assert got[1] - got[2] == pytest.approx(5, rel=1e-3)
    assert np.isfinite(got).all()
    # The control: that of a normal costs half the square.
    assert norm.logpdf(1, 0, 0.01) < got[1] - 1000


def forecasts(width: float) -> pd.Series:
    """Scores of forecasts with ``width`` times the true sd for 1000 independent rows."""
    rng, n, sd = np.random.default_rng(8), 1000, 0.05
    centre = rng.normal(0.5, 0.3, n)
    observed = centre + sd * rng.standard_normal(n)
    return scores(ensemble(centre, width * sd, 500), observed, width * sd).iloc[0]


def scores(
    log_draws: np.ndarray, y: np.ndarray, sd: float = 1.0, groups: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Scores of an ensemble whose density is normal around its mean."""
    density = np.asarray(norm.logpdf(y, log_draws.mean(axis=0), sd))
    return score_ensemble(log_draws, y, density, groups)


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
    row = scores(ensemble(np.zeros(40), 0.1), np.zeros(40)).iloc[0]
    for nominal in COVERAGES:
        low, high = (float(binom.ppf(tail, 40, nominal)) for tail in (0.025, 0.975))
        name = f"cover{round(100 * nominal)}"
        assert (row[f"{name}_low"], row[f"{name}_high"]) == (low / 40, high / 40)


def test_scores_by_group_are_those_of_the_group_alone() -> None:
    rng = np.random.default_rng(1)
    draws, y = rng.normal(size=(100, 6)), rng.normal(size=6)
    groups = pd.DataFrame({"method": list("abaabb"), "task": ["t"] * 6}, index=range(10, 16))
    table = scores(draws, y, groups=groups).set_index("group")
    assert list(table.index) == ["all", "method=a", "method=b", "task=t"]
    own = [0, 2, 3]
    alone = scores(draws[:, own], y[own]).iloc[0]
    assert table.loc["method=a", "n"] == 3
    for name in ("crps", "rmse", "bias", "log_score", "cover50"):
        assert table.loc["method=a", name] == pytest.approx(alone[name], rel=1e-12)
    np.testing.assert_allclose(
        table.loc["all"].to_numpy(float), table.loc["task=t"].to_numpy(float), rtol=1e-12
    )


def test_bias_has_the_sign_of_the_forecast() -> None:
    table = scores(ensemble(np.full(5, 0.1), 0.01), np.zeros(5))
    assert table.loc[0, "bias"] == pytest.approx(0.1, abs=1e-6)
    assert table.loc[0, "rmse"] == pytest.approx(0.1, abs=1e-6)


def test_draws_are_scored_on_log_loss_with_their_own_density() -> None:
    forecast, observed = draws_of(np.full((300, 3), 0.4), 0.1, 5.0), np.exp([0.3, 0.45, 0.9])
    groups = pd.DataFrame({"task": ["a", "b", "b"]})
    got = score_draws(forecast, observed, groups)
    y = np.log(observed)
    density = np.asarray(student.logpdf(y, 5, 0.4, 0.1))
    expected = score_ensemble(np.log(forecast.loss), y, density, groups)
    pd.testing.assert_frame_equal(got, expected)
    # The control: the density given is the one that counts.
    other = score_ensemble(np.log(forecast.loss), y, density - 1, groups)
    np.testing.assert_allclose(other["log_score"], got["log_score"] - 1)


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


def test_a_pair_is_a_row_for_each_run_of_a_forecast() -> None:
    """Two seeds of a run are two pairs; what the forecast called loss itself is put aside."""
    runs = pd.concat([landed(), landed().head(1).assign(loss=2.1)])
    pairs = matched(forecast_table().assign(loss=-1.0), runs)
    assert sorted(pairs["loss"]) == [2.0, 2.1, 3.2]
    assert list(pairs["loss_mean"]) == sorted(pairs["loss_mean"])
    with pytest.raises(ValueError, match="lacks the column 'mood' to score by"):
        score_table(forecast_table(), landed(), by=["mood"])
