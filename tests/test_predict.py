"""Predictive draws of known curves, in any company and number. No posterior is sampled."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from predicting import ALARM, over, predictor, target
from scipy.stats import binom
from scipy.stats import t as student

from tunecast.models.fits.fit import Fit
from tunecast.models.hierarchy import predict
from tunecast.models.hierarchy.predict import Predictive
from tunecast.models.hierarchy.priors import WEAK
from tunecast.models.hierarchy.targets import check_targets
from tunecast.models.inference.posterior import Posterior
from tunecast.models.laws import LAWS
from tunecast.models.laws.positive import MAX_LOG

type MakeFit = Callable[..., Fit]


# ------------------------------------------------------------------ known curves


@pytest.mark.parametrize("law", LAWS)
def test_a_run_of_the_table_is_expected_where_its_curve_is(
    ladder: pd.DataFrame, believed: MakeFit, law: str
) -> None:
    fit = believed(ladder, law=law)
    draws = fit.draws(ladder)
    values, table = fit.posteriors[0].values, fit.posteriors[0].table
    within = np.clip(values["expected_log_loss"], -MAX_LOG, MAX_LOG)
    np.testing.assert_allclose(np.log(draws.expected), within, atol=1e-10)
    np.testing.assert_array_equal(draws.scale, values["noise"][:, table.run_curve])
    np.testing.assert_array_equal(draws.df, values["noise_df"])
    assert (draws.extrapolation == 1).all()


def matching(found: Predictive, posterior: Posterior, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A quantity of targets that the fit knows, and the fit's own at the same labels."""
    got, own = found.values[name], posterior.values[name]
    for axis, dim in enumerate(reversed(found.dims[name])):
        if dim != "run":
            known = posterior.table.coords[dim]
            at = [known.index(label) for label in found.table.coords[dim]]
            own = own.take(at, axis=own.ndim - 1 - axis)
    return got, own


@pytest.mark.parametrize("law", LAWS)
def test_every_quantity_of_what_is_known_is_the_fitted_one(
    zhang: pd.DataFrame, believed: MakeFit, law: str
) -> None:
    """Some runs in another order than the fit's: by name and label, all that the model names."""
    fit = believed(zhang, law=law, size=50)
    (posterior,) = fit.posteriors
    some = zhang.iloc[-3::-37].reset_index(drop=True)
    found = over(predictor(fit), some)
    published = {p.name for p in posterior.table.law.parameters} - {
        q.name for q in posterior.table.quantities
    }
    assert found.values.keys() >= posterior.values.keys() - published
    moved = 0
    for name in posterior.values.keys() - published:
        if found.dims[name] == ("run",):
            order = [list(zhang["run_id"]).index(run) for run in some["run_id"]]
            got, own = found.values[name], posterior.values[name][:, order]
        else:
            got, own = matching(found, posterior, name)
        np.testing.assert_allclose(got, own, rtol=1e-12, atol=1e-12, err_msg=name)
        # The control: the same label is not the same place.
        unmoved = posterior.values[name][..., : got.shape[-1]]
        moved += got.shape != unmoved.shape or not np.allclose(got, unmoved)
    assert moved > 10


def test_a_new_run_scatters_as_its_curve_does(ladder: pd.DataFrame, believed: MakeFit) -> None:
    """Noise over its scale is Student-t: the share inside one scale, pooled over equal tails."""
    priors = {**WEAK, "noise_df": replace(WEAK["noise_df"], location=np.log(3.0), scale=1e-12)}
    n = 4000
    fit = believed(ladder, size=n, priors=priors)
    draws = fit.draws(ladder.iloc[[0]])
    (posterior,) = fit.posteriors
    scale = posterior.values["noise"][:, posterior.table.run_curve[0]]
    z = np.log(draws.loss[:, 0] / draws.expected[:, 0]) / scale
    inside = student.cdf(1, 5) - student.cdf(-1, 5)
    low, high = binom.interval(1 - ALARM, n, inside)
    assert low <= (np.abs(z) < 1).sum() <= high
    assert not low <= (np.abs(z) < 1.3).sum() <= high  # the control


def test_a_base_model_brings_its_factors(ladder: pd.DataFrame, believed: MakeFit) -> None:
    fit = believed(ladder)
    given = fit.draws(ladder).expected
    np.testing.assert_array_equal(fit.draws(ladder.drop(columns="model_size")).expected, given)


# ------------------------------------------------------------------ the company


def test_a_forecast_does_not_depend_on_the_other_targets(
    zhang: pd.DataFrame, believed: MakeFit
) -> None:
    """Expected draws in any company and order; run noise belongs to the place in the table."""
    fit = believed(zhang)
    targets = zhang.iloc[:40:4].assign(base_model=["", "a", "b", "", "a"] * 2)
    targets["finetune_examples"] *= np.geomspace(0.01, 100, len(targets))
    whole = fit.draws(targets)
    alone = [fit.draws(targets.iloc[[i]]) for i in range(len(targets))]
    np.testing.assert_array_equal(np.hstack([d.expected for d in alone]), whole.expected)
    np.testing.assert_array_equal(fit.draws(targets.iloc[::-1]).expected, whole.expected[:, ::-1])
    np.testing.assert_array_equal(alone[0].loss[:, 0], whole.loss[:, 0])
    # Two runs at one place do not share their luck.
    twice = fit.draws(pd.concat([targets.iloc[[0]]] * 2))
    assert not np.array_equal(twice.loss[:, 0], twice.loss[:, 1])
    np.testing.assert_array_equal(twice.expected[:, 0], twice.expected[:, 1])


def test_new_names_among_the_targets_move_no_known_one(
    zhang: pd.DataFrame, believed: MakeFit
) -> None:
    """A new task, method, family and base model beside known runs: these stay as they were."""
    fit = believed(zhang, size=50)
    known = zhang.iloc[:3]
    new = known.assign(task="t", method="m", family="f", base_model="new")
    alone, beside = fit.draws(known), fit.draws(pd.concat([new, known]))
    np.testing.assert_array_equal(beside.expected[:, 3:], alone.expected)
    assert not np.allclose(beside.expected[:, :3], alone.expected)


def test_the_seed_decides_what_is_drawn_anew(ladder: pd.DataFrame, believed: MakeFit) -> None:
    fit = believed(ladder)
    new = target(method="new", model_size=1e6)
    assert not np.array_equal(fit.draws(new).expected, fit.draws(new, seed=9).expected)
    np.testing.assert_array_equal(fit.draws(new, seed=9).loss, fit.draws(new, seed=9).loss)
    known = ladder.iloc[[0]]
    np.testing.assert_array_equal(fit.draws(known).expected, fit.draws(known, seed=9).expected)


# ------------------------------------------------------------------ many targets


def many(zhang: pd.DataFrame) -> pd.DataFrame:
    """Known, partly known and new targets, inside and beyond the data."""
    rows = pd.concat([zhang.iloc[::9], zhang.iloc[::11].assign(base_model="new", task="t")])
    return rows.assign(finetune_examples=rows["finetune_examples"] * np.geomspace(1, 30, len(rows)))


def test_many_targets_are_answered_as_few_are(
    zhang: pd.DataFrame, believed: MakeFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of 7 as in one, value for value, however the last part is cut off."""
    fit, targets = believed(zhang, size=20), many(zhang)
    ready = check_targets(targets, fit.posteriors[0].table)
    assert 7 < len(ready) < predict.CHUNK and len(ready) % 7
    whole = predictor(fit).draws(ready)
    monkeypatch.setattr(predict, "CHUNK", 7)
    parts = predictor(fit).draws(ready)
    for name in ("loss", "expected", "extrapolation", "scale", "df"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)


def test_memory_beyond_the_answer_does_not_grow_with_the_targets(
    zhang: pd.DataFrame, believed: MakeFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peak memory less the four arrays of the answer: of a part, not of the table."""
    fit = believed(zhang, size=100)
    asked = predictor(fit)
    rows = check_targets(pd.concat([zhang] * 4, ignore_index=True), asked.table)

    def beyond(n: int) -> float:
        tracemalloc.start()
        try:
            draws = asked.draws(rows.iloc[:n])
            return tracemalloc.get_traced_memory()[1] - 4 * draws.loss.nbytes
        finally:
            tracemalloc.stop()

    monkeypatch.setattr(predict, "CHUNK", 100)
    few, lots = beyond(200), beyond(1600)
    assert lots < 2 * few + 2 * 100 * 1600 * 8
    monkeypatch.setattr(predict, "CHUNK", 10_000)  # the control: all in one part
    assert beyond(1600) > 2 * lots


# ------------------------------------------------------------------ the density of a run


def test_the_density_of_a_run_is_the_mixture_of_what_its_draws_say(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    """One Student-t around each draw of the mean, on log loss, by hand."""
    draws = believed(ladder).draws(ladder.iloc[:3])
    at = np.log(draws.expected).mean(axis=0) + np.array([-0.02, 0.0, 0.3])
    mean, df = np.log(draws.expected), draws.df[:, None]
    by_hand = np.log(np.mean(student.pdf(at, df, mean, draws.scale), axis=0))
    np.testing.assert_allclose(draws.log_density(at), by_hand, rtol=1e-10)
    # The control: the mean of logs, a bound from below, is another number.
    assert (np.mean(student.logpdf(at, df, mean, draws.scale), axis=0) < by_hand - 0.1).all()


def test_runs_spread_as_their_density_says(ladder: pd.DataFrame, believed: MakeFit) -> None:
    """The share of draws of a new run below a point is the density's integral up to it."""
    n = 20_000
    draws = believed(ladder, size=n).draws(ladder.iloc[[0]])
    x = np.log(draws.loss[:, 0])
    point = np.quantile(x, 0.8)
    mean, scale = np.log(draws.expected[:, 0]), draws.scale[:, 0]
    cdf = np.mean(student.cdf(point, draws.df, mean, scale))
    low, high = binom.interval(1 - ALARM, n, cdf)
    assert low <= (x < point).sum() <= high
    assert not low <= (x < point + 0.1).sum() <= high


# ------------------------------------------------------------------ several laws


def test_a_law_keeps_its_weight_in_a_mixture(ladder: pd.DataFrame, believed: MakeFit) -> None:
    """Draws of a fit with two laws come from each in proportion; figures agree with the wider."""
    power, rectified = (believed(ladder, law=law).posteriors[0] for law in ("power", "rectified"))
    both = (replace(power, weight=0.25), replace(rectified, weight=0.75))
    mixed = replace(believed(ladder), posteriors=both)
    draws = mixed.draws(ladder)
    # All 200 of the one, and as many of the other as that makes a quarter.
    assert draws.loss.shape == (200 + 66, len(ladder))
    own = set(np.round(believed(ladder, law="power").draws(ladder).expected[:, 0], 12))
    assert sum(v in own for v in np.round(draws.expected[:, 0], 12)) == 66
    assert mixed.spec.factors == ("model_size",)


# ------------------------------------------------------------------ names of columns


@pytest.mark.parametrize("name", ["cell", "curve", "run", "base_model_effect", "mean", "a/b"])
def test_cells_are_the_fitted_ones_whatever_a_column_is_called(
    ladder: pd.DataFrame, believed: MakeFit, name: str
) -> None:
    runs = ladder.assign(**{name: ladder["method"]})
    for cell in ((name,), ("task", name), (name, "base_model")):
        fit = believed(runs, size=5, cell=cell)
        (posterior,) = fit.posteriors
        found = over(predictor(fit), runs.iloc[::-5])
        for quantity in posterior.table.quantities:
            got, own = matching(found, posterior, quantity.name)
            np.testing.assert_allclose(got, own, rtol=1e-12, err_msg=f"{cell}: {quantity.name}")


def test_a_base_models_column_may_have_another_name(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    """And a column ``base_model`` beside it may tell cells apart."""
    runs = ladder.assign(checkpoint="c-" + ladder["base_model"])
    runs["base_model"] = np.where(runs["model_size"] > 2e5, "large", "small")
    fit = believed(runs, size=5, cell=("method", "base_model"), curve="checkpoint")
    assert len(fit.posteriors[0].table.base_models) == 3
    expected = fit.posteriors[0].values["expected_log_loss"]
    np.testing.assert_allclose(np.log(fit.draws(runs).expected), expected, atol=1e-10)
