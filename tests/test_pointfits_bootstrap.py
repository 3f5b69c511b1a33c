"""The bootstrap of point fits: what it resamples, what its intervals cover, what it refuses."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from known_laws import runs_of
from scipy.stats import binom

from tunecast.models.errors import TunecastError
from tunecast.models.laws import LAWS
from tunecast.models.pointfits import PointFit, bootstrap, fit_point


@pytest.fixture(scope="module")
def noisy() -> pd.DataFrame:
    return runs_of("multiplicative", noise=0.02, seed=4).assign(
        base_model=lambda frame: frame["model_size"].astype(str)
    )


@pytest.fixture(scope="module")
def noisy_fit(noisy: pd.DataFrame) -> PointFit:
    return fit_point(noisy, law="multiplicative", factors=["model_size"], residuals="log")


@pytest.mark.parametrize("resample", ["runs", "residuals"])
def test_a_replicate_depends_on_the_seed_and_its_number_only(
    noisy: pd.DataFrame, noisy_fit: PointFit, resample: Any
) -> None:
    few = bootstrap(noisy, noisy_fit, replicates=4, seed=7, resample=resample)
    many = bootstrap(noisy, noisy_fit, replicates=9, seed=7, resample=resample)
    other = bootstrap(noisy, noisy_fit, replicates=4, seed=8, resample=resample)
    at = np.array([2e4, 3e6]), {"model_size": np.array([2e9, 16e9])}
    # The batch is computed together: sums may differ in the last bits, and the search in more.
    np.testing.assert_allclose(few.mean(*at), many.mean(*at)[:4], rtol=1e-6)
    np.testing.assert_allclose(few.new_run(*at), many.new_run(*at)[:4], rtol=1e-6)
    assert not np.isclose(few.mean(*at), other.mean(*at), rtol=1e-6).any()


def test_clusters_are_drawn_whole() -> None:
    """Eight curves of seven runs whose levels differ by an sd of 10 %.

    What matters is how many curves there are, so the mean moves by 10 % / sqrt(8) = 3.5 % when
    curves are drawn. Drawn one by one, the 56 runs would make it 10 % / sqrt(56) = 1.3 %, the
    negative control. 100 replicates know an sd to 7 %; the test allows four times that.
    """
    curve = runs_of("power")
    levels = np.array([-1.3, -0.9, -0.6, -0.2, 0.2, 0.6, 0.9, 1.3]) / 0.86  # of sd 1
    runs = pd.concat(
        [
            curve.assign(loss=curve["loss"] * (1 + 0.1 * level), base_model=str(i))
            for i, level in enumerate(levels)
        ]
    )
    fit = fit_point(runs, law="power", residuals="log", delta=math.inf)
    spread = [
        np.log(bootstrap(runs, fit, replicates=100, seed=0, cluster=by).mean(1e5)).std()
        for by in ("base_model", None)
    ]
    np.testing.assert_allclose(spread[0], 0.1 / math.sqrt(8), rtol=0.28)
    assert spread[1] < 0.6 * spread[0]


def test_a_new_run_varies_more_than_the_mean(noisy: pd.DataFrame, noisy_fit: PointFit) -> None:
    refits = bootstrap(noisy, noisy_fit, replicates=50, seed=0)
    at = np.array([3e4, 3e5]), {"model_size": np.array([2e9, 4e9])}
    mean, new = refits.mean(*at), refits.new_run(*at, draws=400)
    assert mean.shape == (50, 2)
    assert new.shape == (400, 2)
    # The noise alone has an sd of 2 % of the loss; 400 draws know an sd to some 4 %.
    noise = np.sqrt(np.log(new).var(axis=0) - np.log(mean).var(axis=0))
    np.testing.assert_allclose(noise, 0.02, rtol=0.35)


def test_intervals_cover_and_intervals_from_shrunken_residuals_do_not() -> None:
    """200 simulated curves, central 80 % intervals: 137 to 180 hits at a level of 1e-4.

    That band detects a true coverage of 0.635 or less with a power of 0.9. The negative control
    scales the residuals of the new run by 0.3.
    """
    repeats, D, noise = 200, np.geomspace(1e3, 1e6, 20), 0.02
    truth = {"A": 9.0, "beta": 0.22, "E": 0.9}
    law, at = LAWS["power"], np.array([3e4, 4e6])
    expected = law(at, {}, **truth)
    hits = dict.fromkeys(("mean", "new run", "shrunken"), np.zeros(2))
    for i in range(repeats):
        rng = np.random.default_rng([9, i])
        loss = law(D, {}, **truth) * np.exp(noise * rng.standard_normal(len(D)))
        runs = pd.DataFrame({"finetune_examples": D, "loss": loss})
        fit = fit_point(runs, law="power", residuals="log", delta=math.inf, starts=4)
        refits = bootstrap(runs, fit, replicates=60, seed=i, resample="residuals")
        shrunken = replace(refits, fit=replace(fit, residuals=0.3 * fit.residuals))
        run = expected * np.exp(noise * rng.standard_normal(2))
        for name, draws, value in (
            ("mean", refits.mean(at), expected),
            ("new run", refits.new_run(at, draws=180), run),
            ("shrunken", shrunken.new_run(at, draws=180), run),
        ):
            low, high = np.quantile(draws, [0.1, 0.9], axis=0)
            hits[name] = hits[name] + ((low <= value) & (value <= high))
    low, high = (float(binom.ppf(level, repeats, 0.8)) for level in (5e-5, 1 - 5e-5))
    for name in ("mean", "new run"):
        assert (low <= hits[name]).all(), (name, hits[name])
        assert (hits[name] <= high).all(), (name, hits[name])
    assert (hits["shrunken"][0] < low).all(), hits["shrunken"]  # where the noise dominates


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda runs: runs.iloc[:-1], {}, "the fit was not made from these runs"),
        (lambda runs: runs.iloc[::-1], {}, "the fit was not made from these runs"),
        (lambda runs: runs, {"replicates": 0}, "replicates must be at least 1, got 0"),
        (lambda runs: runs, {"cluster": "family"}, "missing column 'family'"),
        (
            lambda runs: runs,
            {"cluster": "base_model", "resample": "residuals"},
            "residuals are drawn one by one",
        ),
        (
            lambda runs: runs.assign(base_model="only"),
            {"cluster": ["base_model", "model_size"]},
            None,
        ),
    ],
)
def test_bootstrap_says_what_it_needs(
    noisy: pd.DataFrame,
    noisy_fit: PointFit,
    change: Any,
    options: dict[str, Any],
    message: str | None,
) -> None:
    arguments = {"replicates": 2, "seed": 0} | options
    if message is None:
        assert bootstrap(change(noisy), noisy_fit, **arguments).replicates == 2
    else:
        with pytest.raises(TunecastError, match=message):
            bootstrap(change(noisy), noisy_fit, **arguments)


def test_too_little_to_resample_is_said() -> None:
    runs = runs_of("power", noise=0.01).head(3)
    fit = fit_point(runs, law="power")
    with pytest.raises(TunecastError, match="3 runs determine 3 parameters exactly"):
        bootstrap(runs, fit, replicates=2, seed=0, resample="residuals")
    # 13 runs for 13 parameters: only a draw of each run once would do, 1 in 50,000.
    rng = np.random.default_rng(0)
    factors = [f"factor_{k}" for k in range(5)]
    many = pd.DataFrame(rng.uniform(1, 2, (13, 7)), columns=[*factors, "finetune_examples", "loss"])
    fit = fit_point(many, law="additive", factors=factors, starts=1)
    with pytest.raises(
        TunecastError, match=r"too few clusters \(13\) to resample: hardly any draw"
    ):
        bootstrap(many, fit, replicates=1, seed=0)
