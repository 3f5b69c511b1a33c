"""Predictive draws: known curves, unseen names, keyed randomness. No posterior is sampled."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, norm
from scipy.stats import f as fisher
from scipy.stats import t as student

from tunecast.models.fits.fit import Fit
from tunecast.models.hierarchy import predict
from tunecast.models.hierarchy.keyed import Keyed
from tunecast.models.hierarchy.predict import Predictive, Predictor
from tunecast.models.hierarchy.priors import BASE_MODEL_DF, WEAK
from tunecast.models.hierarchy.targets import check_targets
from tunecast.models.inference.posterior import Posterior
from tunecast.models.laws import LAWS

type MakeFit = Callable[..., Fit]
type Values = dict[str, np.ndarray]

ALARM = 1e-4  # probability that a right model leaves a band


def predictor(fit: Fit, values: Values | None = None, **options: Any) -> Predictor:
    (p,) = fit.posteriors
    return Predictor(p.table, p.priors, {**p.values, **(values or {})}, seed=5, **options)


def over(asked: Predictor, targets: pd.DataFrame) -> Predictive:
    """The model over targets."""
    return asked.hierarchy(check_targets(targets, asked.table))


def log_expected(asked: Predictor, targets: pd.DataFrame) -> np.ndarray:
    return np.log(asked.draws(check_targets(targets, asked.table)).expected)


def target(**values: Any) -> pd.DataFrame:
    row = {"task": "debian-en-de", "method": "fmt", "finetune_examples": 600.0}
    return pd.DataFrame([row | values])


def standard(z: np.ndarray) -> bool:
    """Whether draws have the mean and the spread of a standard normal, to five errors."""
    n = z.size
    return bool(abs(z.mean()) < 5 / np.sqrt(n) and abs(z.std() - 1) < 5 / np.sqrt(2 * n))


# ------------------------------------------------------------------ known curves


@pytest.mark.parametrize("law", LAWS)
def test_a_run_of_the_table_is_expected_where_its_curve_is(
    ladder: pd.DataFrame, believed: MakeFit, law: str
) -> None:
    fit = believed(ladder, law=law)
    draws = fit.draws(ladder)
    values, table = fit.posteriors[0].values, fit.posteriors[0].table
    np.testing.assert_allclose(np.log(draws.expected), values["expected_log_loss"], atol=1e-10)
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


# ------------------------------------------------------------------ new curves


def deviations(found: Any, values: Any) -> np.ndarray:
    """By what the log loss of each curve differs from what its cell and base model say."""
    base = values["base_model_effect"][:, found.table.curve_base]
    return values["log_loss_ref_curve"] - values["log_loss_ref_expected"] - base


def test_a_new_curve_deviates_from_its_cell_as_fitted_ones_do(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    """Both are Student-t: the share inside one scale; a normal's, and a wider one's, fail."""
    n = 4000
    fit = believed(ladder, size=n)
    (posterior,) = fit.posteriors
    found = over(predictor(fit), ladder.iloc[[0]].assign(base_model="new"))
    fitted = deviations(posterior, posterior.values)[:, 0]
    new = deviations(found, found.values)[:, 0]
    low, high = binom.interval(1 - ALARM, n, student.cdf(1, BASE_MODEL_DF) * 2 - 1)
    assert not low <= n * (norm.cdf(1) * 2 - 1) <= high
    for deviation in (fitted, new):
        z = np.abs(deviation / posterior.values["log_loss_ref_curve_sd"])
        assert low <= (z < 1).sum() <= high
        assert not low <= (z < 1.3).sum() <= high


@pytest.mark.parametrize("law", LAWS)
def test_a_new_curve_bends_as_its_cell_does_give_or_take_the_scatter_of_curves(
    ladder: pd.DataFrame, believed: MakeFit, law: str
) -> None:
    """At the reference factor, where a cell expects its own quantities of a curve."""
    n = 2000
    fit = believed(ladder, size=n, law=law)
    (posterior,) = fit.posteriors
    at = dict(zip(posterior.table.factors, posterior.table.x_ref, strict=True))
    found = over(predictor(fit), target(base_model="new", **at))
    varying = [q.name for q in posterior.table.quantities if q.varies and q.name != "log_loss_ref"]
    k = posterior.table.cells.index(("debian-en-de", "fmt"))
    for name in varying:
        away = found.values[f"{name}_curve"][:, 0] - posterior.values[name][:, k]
        z = away / posterior.values[f"{name}_curve_sd"]
        assert standard(z)
        assert not standard(1.3 * z)  # the control
    assert "log_beta" in varying


def test_an_odd_base_model_has_odd_curves(ladder: pd.DataFrame, believed: MakeFit) -> None:
    """Its effect and a curve's deviation are a bivariate Student-t; paired anew they are not."""
    fit = believed(ladder, size=4000)
    (posterior,) = fit.posteriors
    values = posterior.values
    bases = posterior.table.base_models
    fmt = ladder[ladder["method"] == "fmt"].drop_duplicates("base_model")
    found = over(predictor(fit), fmt.assign(base_model="like " + fmt["base_model"]))
    first = [int(np.flatnonzero(posterior.table.curve_base == b)[0]) for b in range(len(bases))]
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "fitted": (values["base_model_effect"], deviations(posterior, values)[:, first]),
        "new": (found.values["base_model_effect"], deviations(found, found.values)),
    }
    n = 4000 * len(bases)
    low, high = binom.interval(1 - ALARM, n, fisher.cdf(1 / 2, 2, BASE_MODEL_DF))
    for effect, deviation in pairs.values():
        b = effect / values["base_model_sd"][:, None]
        c = deviation / values["log_loss_ref_curve_sd"][:, None]
        assert b.shape == c.shape == (4000, len(bases))
        assert low <= (b**2 + c**2 < 1).sum() <= high
        assert not low <= (b**2 + np.roll(c, 1, axis=0) ** 2 < 1).sum() <= high


def test_the_sizes_of_a_new_base_model_deviate_each_on_their_own_unless_told_otherwise(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    """A curve in model size at fixed data: smooth where sizes share what is drawn of a curve."""
    fit = believed(ladder, size=2000)
    sizes = pd.concat([target(base_model="new")] * 3).assign(model_size=[1e5, 3e5, 9e5])
    apart, alike = (over(predictor(fit, by_size=by_size), sizes) for by_size in (True, False))
    for found, shared in ((apart, False), (alike, True)):
        assert len(found.table.curve_cell) == 3
        own = deviations(found, found.values)
        noise = found.values["log_noise_curve"]
        assert np.allclose(own, own[:, :1], atol=1e-12) == shared
        assert np.allclose(noise, noise[:, :1], atol=1e-12) == shared
        # Either way the law moves with the size, and the base model has one effect.
        assert not np.allclose(*found.values["log_loss_ref_expected"].T[:2])
        assert found.values["base_model_effect"].shape == (2000, 1)
    # Curves that the fit knows are its own either way.
    known = ladder.iloc[[0]]
    np.testing.assert_array_equal(
        log_expected(predictor(fit, by_size=False), known), log_expected(predictor(fit), known)
    )


# ------------------------------------------------------------------ unseen names


def test_an_unseen_base_model_has_one_effect_on_all_tasks_and_methods(
    zhang: pd.DataFrame, believed: MakeFit
) -> None:
    """Switching its effect off moves every target of it by the same amount, draw for draw."""
    fit = believed(zhang)
    cells = zhang[["task", "method", "family"]].drop_duplicates()
    targets = cells.assign(base_model="new", model_size=3e9, finetune_examples=1e5)
    values = fit.posteriors[0].values
    # Curves' own deviations, whose scale goes with the effect, are off in both.
    on = predictor(fit, {"log_loss_ref_curve_sd": 0 * values["log_loss_ref_curve_sd"]})
    off = predictor(fit, {**on.values, "base_model_sd": 1e-12 * values["base_model_sd"]})
    effect = log_expected(on, targets) - log_expected(off, targets)
    assert len(cells) > 4
    np.testing.assert_allclose(effect, np.repeat(effect[:, :1], len(cells), axis=1), atol=1e-12)
    other = targets.assign(base_model="other")
    another = log_expected(on, other) - log_expected(off, other)
    assert abs(np.corrcoef(effect[:, 0], another[:, 0])[0, 1]) < 5 / np.sqrt(len(effect))
    assert effect.std() > 0.01


def test_a_missing_base_model_is_an_unseen_one(ladder: pd.DataFrame, believed: MakeFit) -> None:
    fit = believed(ladder)
    empty = fit.draws(target(model_size=1e6, base_model="")).expected
    for same in (target(model_size=1e6), target(model_size=1e6, base_model=np.nan)):
        np.testing.assert_array_equal(fit.draws(same).expected, empty)


def test_where_each_base_model_has_one_curve_a_new_one_has_one_deviation(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    """Its effect serves for both: Student-t of the learned scale, and nothing on top of it."""
    n = 4000
    fit = believed(ladder[ladder["method"] == "fmt"].reset_index(drop=True), size=n)
    found = over(predictor(fit), target(base_model="new", model_size=3e5))
    assert found.table.one_curve_per_base_model
    np.testing.assert_allclose(deviations(found, found.values), 0, atol=1e-12)
    z = np.abs(found.values["base_model_effect"][:, 0] / found.values["base_model_sd"])
    low, high = binom.interval(1 - ALARM, n, student.cdf(1, BASE_MODEL_DF) * 2 - 1)
    assert low <= (z < 1).sum() <= high
    assert not low <= (z < 1.3).sum() <= high


def test_new_tasks_and_methods_are_wider_than_known_ones(
    zhang: pd.DataFrame, believed: MakeFit
) -> None:
    fit = believed(zhang, size=1000)
    known = zhang.iloc[[0]].assign(base_model="new")
    new = [known.assign(task="t"), known.assign(method="m"), known.assign(task="t", method="m")]
    draws = [log_expected(predictor(fit), t) for t in (known, *new)]
    # What the cell adds to the loss, apart from what they share.
    own = [np.std(d - draws[0]) for d in draws[1:]]
    assert all(np.isfinite(d).all() for d in draws)
    assert min(own) > 0.1
    loss = fit.draws(pd.concat([known, *new])).loss
    assert (loss > 0).all()


def test_an_unseen_cell_of_seen_levels_is_their_sum_and_its_own_interaction(
    zhang: pd.DataFrame, believed: MakeFit
) -> None:
    first = zhang.iloc[0]
    gone = (zhang["task"] == first["task"]) & (zhang["method"] == first["method"])
    fit = believed(zhang[~gone].reset_index(drop=True))
    (posterior,) = fit.posteriors
    table, values = posterior.table, posterior.values
    cell = (first["task"], first["method"], first["family"])
    assert cell not in table.cells
    found = over(predictor(fit), zhang.iloc[[0]])
    for q in table.quantities:
        known = values[f"{q.name}_mean"]
        for grouping, level in zip(table.groupings[:3], cell, strict=True):
            known = known + values[f"{q.name}_{grouping.name}"][..., grouping.levels.index(level)]
        own = (found.values[q.name][..., 0] - known) / values[f"{q.name}_cell_sd"]
        assert standard(own), q.name


def test_a_new_level_has_an_effect_of_the_learned_scale(
    zhang: pd.DataFrame, believed: MakeFit
) -> None:
    fit = believed(zhang, size=1000)
    values = fit.posteriors[0].values
    found = over(predictor(fit), zhang.iloc[[0]].assign(task="t"))
    for q in fit.posteriors[0].table.quantities:
        z = found.values[f"{q.name}_task"][..., 0] / values[f"{q.name}_task_sd"]
        assert standard(z), q.name
        assert not standard(1.3 * z), q.name
    # And the factor's levels that are known keep theirs.
    fmt = fit.posteriors[0].table.groupings[1].levels.index(zhang.iloc[0]["method"])
    np.testing.assert_array_equal(
        found.values["log_beta_method"][:, 0], values["log_beta_method"][:, fmt]
    )


def test_the_one_level_seen_is_part_of_the_global_mean(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    """The fit has no effects of tasks; a new one has some, of a scale drawn from its prior."""
    fit = believed(ladder, size=1000)
    rows = pd.concat([target(), target(task="other")]).assign(model_size=1e6)
    found = over(predictor(fit), rows)
    effect = found.values["log_loss_ref_task"]
    assert not effect[:, 0].any()
    assert effect[:, 1].std() > 0.1
    prior = WEAK["log_loss_ref"]
    sd = found.values["log_loss_ref_task_sd"]
    assert np.median(sd) == pytest.approx(prior.effect, rel=5 * 0.5 * 1.25 / np.sqrt(1000))
    assert standard(effect[:, 1] / sd)


def test_the_noise_of_an_unseen_task_is_drawn_around_that_of_all_tasks(
    zhang: pd.DataFrame, believed: MakeFit
) -> None:
    """From N(log_noise, effect), the prior with what the fit says of its mean.

    The control: around the mean of the tasks that were seen it would scatter by less.
    """
    n = 4000
    fit = believed(zhang, size=n)
    values, noise = fit.posteriors[0].values, WEAK["noise"]
    found = over(predictor(fit), zhang.iloc[[0]].assign(task="t"))
    of_task = found.values["log_noise_task"][:, 0]
    assert standard((of_task - values["log_noise"]) / noise.effect)
    assert not standard((of_task - values["log_noise_task"].mean(axis=1)) / noise.effect)
    assert standard((found.values["log_noise_curve"][:, 0] - of_task) / noise.scatter)
    np.testing.assert_array_equal(found.values["noise"], np.exp(found.values["log_noise_curve"]))


# ------------------------------------------------------------------ keyed draws


def test_what_is_new_has_draws_of_its_own_in_every_unknown(
    zhang: pd.DataFrame, believed: MakeFit
) -> None:
    """A new task, method and curve: standardised, no two of their unknowns go together."""
    n = 1000
    fit = believed(zhang, size=n)
    values = fit.posteriors[0].values
    found = over(predictor(fit), zhang.iloc[[0]].assign(task="t", method="m", base_model="new"))
    names = [q.name for q in fit.posteriors[0].table.quantities if not q.per_factor]
    drawn = [
        found.values[f"{name}_{g}"][:, 0] / values[f"{name}_{g}_sd"]
        for name in names
        for g in ("task", "method", "cell")
    ]
    drawn += [found.values["log_noise_task"][:, 0] - values["log_noise"]]
    drawn += [found.values["log_noise_curve"][:, 0] - found.values["log_noise_task"][:, 0]]
    drawn += [deviations(found, found.values)[:, 0] / values["log_loss_ref_curve_sd"]]
    together = np.corrcoef(np.clip(drawn, -3, 3)) - np.eye(len(drawn))
    assert len(drawn) == 15
    assert np.abs(together).max() < 5 / np.sqrt(n)


def test_draws_belong_to_their_name() -> None:
    keyed = Keyed(seed=3, size=500)
    first = keyed.draws(None, "log_beta_curve", ("t", "fmt"), 1.5)
    keyed.draws(None, "something else")
    np.testing.assert_array_equal(keyed.draws(None, "log_beta_curve", ("t", "fmt"), 1.5), first)
    others = [
        keyed.draws(None, "log_beta_curve", ("t", "fmt"), 1.25),
        keyed.draws(None, "log_beta_curve", ("t", "lora"), 1.5),
        keyed.draws(None, "log_beta_curve", "('t', 'fmt')", 1.5),  # a text that reads like a tuple
        Keyed(seed=4, size=500).draws(None, "log_beta_curve", ("t", "fmt"), 1.5),
    ]
    for other in others:
        assert abs(np.corrcoef(first, other)[0, 1]) < 5 / np.sqrt(500)
    assert keyed.draws(None, "a", shape=(2, 3)).shape == (500, 2, 3)


def test_keyed_draws_are_standard_normal_or_student() -> None:
    keyed = Keyed(seed=0, size=20_000)
    for df, law in ((None, norm()), (4.0, student(4.0))):
        inside = (np.abs(keyed.draws(df, "a")) < 1).sum()
        low, high = binom.interval(1 - ALARM, 20_000, law.cdf(1) - law.cdf(-1))
        assert low <= inside <= high
        other = norm() if df else student(4.0)  # the control: one is not taken for the other
        assert not low <= 20_000 * (other.cdf(1) - other.cdf(-1)) <= high


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
    assert draws.loss.shape == (200, len(ladder))
    own = set(np.round(believed(ladder, law="power").draws(ladder).expected[:, 0], 12))
    assert sum(v in own for v in np.round(draws.expected[:, 0], 12)) == 50
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
