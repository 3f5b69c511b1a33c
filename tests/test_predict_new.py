"""Predictive draws for what the fit has not seen: curves, base models, tasks, methods, cells."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from predicting import ALARM, deviations, log_expected, over, predictor, standard, target
from scipy.stats import binom, norm
from scipy.stats import f as fisher
from scipy.stats import t as student
from thinned import THINNED

from tunecast.models.fits.fit import Fit
from tunecast.models.hierarchy.priors import BASE_MODEL_DF, LEAST_NOISE, WEAK
from tunecast.models.hierarchy.targets import curve_labels, known_curves
from tunecast.models.laws import LAWS

type MakeFit = Callable[..., Fit]


# ------------------------------------------------------------------ new curves


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


def test_a_known_curve_draws_what_its_runs_cannot_show(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    """One of one size all but its level, one of two all but that and its slope.

    The level of a curve of one run is drawn given that run, by `unsampled.complete`.
    """
    fit = believed(THINNED["one, two and all"](ladder), law="power", size=2000)
    (posterior,) = fit.posteriors
    values, table = posterior.values, posterior.table
    bases = ("ladder-1.2m", "ladder-0.1m", "ladder-0.4m")  # of one size, of two, of all
    targets = pd.concat([target(base_model=base) for base in bases])
    found = over(predictor(fit), targets)
    places = [known_curves(table)[label] for label in curve_labels(found.table)]
    fmt = table.cells.index(("debian-en-de", "fmt"))
    np.testing.assert_array_equal(
        found.values["log_loss_ref_curve"], values["log_loss_ref_curve"][:, places]
    )
    scatter = {
        "log_beta_curve": (2, values["log_beta"][:, fmt], values["log_beta_curve_sd"]),
        "logit_floor_curve": (3, values["logit_floor"][:, fmt], values["logit_floor_curve_sd"]),
        "log_noise_curve": (3, values["log_noise_task"][:, 0], WEAK["noise"].scatter),
        "drift_curve": (3, 0.0, values["drift_curve_sd"]),
    }
    for name, (needed, mean, sd) in scatter.items():
        shown = table.shown(name)
        assert shown is not None
        for i, curve in enumerate(places):
            own = found.values[name][..., i].reshape(2000, -1)[:, 0]
            if table.curve_sizes[curve] >= needed:
                known = values[name][..., shown.places[curve]].reshape(2000, -1)[:, 0]
                np.testing.assert_array_equal(own, known)
                continue
            assert shown.places[curve] == -1
            z, other = ((v - mean) / sd for v in (own, values[name].reshape(2000, -1)[:, 0]))
            assert standard(z) and not standard(1.3 * z)
            # Its own: that of no curve which shows one.
            assert abs(np.corrcoef(z, other)[0, 1]) < 5 / np.sqrt(2000)


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
    noise = np.exp(found.values["log_noise_curve"]) + LEAST_NOISE
    np.testing.assert_array_equal(found.values["noise"], noise)


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
