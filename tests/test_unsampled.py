"""Runs alone on their curve: its deviations are a part of their noise until they are drawn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import pytest
from conftest import with_losses
from predicting import log_expected, over, predictor
from thinned import THINNED

from tunecast.models.fits.fit import Fit, fit
from tunecast.models.hierarchy.model import curve_scale
from tunecast.models.hierarchy.numpy_backends import simulate_prior
from tunecast.models.hierarchy.priors import WEAK, Priors
from tunecast.models.hierarchy.table import Table
from tunecast.models.hierarchy.targets import check_targets
from tunecast.models.inference.posterior import Posterior
from tunecast.models.laws import get_law
from tunecast.models.laws.positive import NumPy

type MakeFit = Callable[..., Fit]
type Values = Mapping[str, np.ndarray]

# Several curves for each base model, or one; runs that are alone among others, or nothing else.
TABLES = ("one and all", "one, two and all", "one and all, a curve each", "a run each")
ONE_EACH = ("one and all, a curve each", "a run each")
DRAWS = 40_000
FIVE = 5 / np.sqrt(DRAWS)
NORMAL: Priors = {
    **WEAK,
    "noise_df": replace(WEAK["noise_df"], location=np.log(1e8), scale=1e-9),
}


def own_scale(table: Table, values: Values) -> np.ndarray:
    """Scale of what a curve adds to log loss by itself, shape (draws, curves)."""
    base_sd = values["base_model_sd"]
    if table.one_curve_per_base_model:
        return np.repeat(base_sd[:, None], len(table.curve_cell), axis=1)
    sd, _ = curve_scale(
        values["log_loss_ref_curve_sd"], values["base_model_effect"], base_sd, NumPy
    )
    return np.asarray(sd[:, table.curve_base])


def own_deviation(table: Table, values: Values) -> np.ndarray:
    """What each curve adds, shape (draws, curves)."""
    if table.one_curve_per_base_model:
        return values["base_model_effect"][:, table.curve_base]
    base = values["base_model_effect"][:, table.curve_base]
    return values["log_loss_ref_curve"] - values["log_loss_ref_expected"] - base


@dataclass(frozen=True)
class Alone:
    """One draw many times over, and a run that is alone on its curve, some way from its cell."""

    fit: Fit
    run: int

    @cached_property
    def posterior(self) -> Posterior:
        return self.fit.posteriors[0]

    @property
    def curve(self) -> int:
        return int(self.posterior.table.run_curve[self.run])

    def shifted(self, by: float) -> "Alone":
        """The same with another log loss of the run."""
        loss = self.fit.runs["loss"].to_numpy(float).copy()
        loss[self.run] *= np.exp(by)
        return replace(self, fit=with_losses(self.fit, loss))

    def parts(self) -> dict[str, float]:
        """Scales of what the residual is the sum of."""
        table, values = self.posterior.table, self.posterior.values
        return {
            "own": float(own_scale(table, values)[0, self.curve]),
            "slope": float(
                values["log_beta_curve_sd"][0] * values["log_relative_loss"][0, self.run]
            ),
            "noise": float(values["noise"][0, self.curve]),
        }

    @property
    def residual(self) -> float:
        values = self.posterior.values
        mean = values["expected_log_loss"][0, self.run]
        return float(self.posterior.table.log_loss[self.run] - mean)


def alone(ladder: pd.DataFrame, believed: MakeFit, thin: str, draws: int = DRAWS) -> Alone:
    """The last such run of a table, twice its scale above what is expected of it."""
    made = believed(THINNED[thin](ladder), law="power", size=1, priors=NORMAL)
    (found,) = made.posteriors
    repeated = {k: np.repeat(v, draws, axis=1) for k, v in found.draws.items()}
    one = replace(found, draws=repeated)
    one.__dict__["geometry"] = found.geometry
    losses = np.exp(found.values["expected_log_loss"][0])
    run = int(np.flatnonzero(found.table.run_alone)[-1])
    losses[run] *= np.exp(2 * found.values["scale"][0, run])
    return Alone(with_losses(replace(made, posteriors=(one,)), losses), run)


# ------------------------------------------------------------------ given its run


@pytest.mark.parametrize("thin", TABLES)
def test_a_deviation_is_drawn_given_the_residual_of_its_run(
    ladder: pd.DataFrame, believed: MakeFit, thin: str
) -> None:
    """Mean and variance are those of one of three normal terms given their sum.

    The control is a deviation that knows nothing of the run.
    """
    case = alone(ladder, believed, thin)
    table = case.posterior.table
    assert table.one_curve_per_base_model == (thin in ONE_EACH)
    parts = case.parts()
    total = sum(part**2 for part in parts.values())
    # The regression of a normal term on the sum that it is in.
    mean = parts["own"] ** 2 / total * case.residual
    sd = np.sqrt(parts["own"] ** 2 - parts["own"] ** 4 / total)

    def right(drawn: np.ndarray) -> bool:
        z = (drawn - mean) / sd
        return bool(abs(z.mean()) < FIVE and abs(z.std() - 1) < FIVE / np.sqrt(2))

    assert case.residual == pytest.approx(2 * np.sqrt(total))
    assert right(own_deviation(table, case.posterior.values)[:, case.curve])
    unconditional = parts["own"] * np.random.default_rng(0).standard_normal(DRAWS)
    assert not right(unconditional)


@pytest.mark.parametrize("thin", TABLES)
def test_with_all_terms_drawn_the_residual_tells_that_much(
    ladder: pd.DataFrame, believed: MakeFit, thin: str
) -> None:
    """By simulation: terms are drawn, and those whose sum is near the residual are looked at."""
    case = alone(ladder, believed, thin)
    rng = np.random.default_rng(1)
    drawn = {name: sd * rng.standard_normal(2_000_000) for name, sd in case.parts().items()}
    total = np.asarray(sum(drawn.values()))
    near = drawn["own"][np.abs(total - case.residual) < 0.05 * total.std()]
    found = own_deviation(case.posterior.table, case.posterior.values)[:, case.curve]
    assert len(near) > 5000
    error = 5 * np.sqrt(found.var() / DRAWS + near.var() / len(near))
    # Draws are within 0.05 of a standard deviation of the residual, and no more often on one side.
    assert abs(found.mean() - near.mean()) < error + 0.01 * abs(found.mean())
    assert found.std() == pytest.approx(near.std(), rel=0.06)
    assert abs(near.mean()) > error  # the control: without the run it is 0


@pytest.mark.parametrize("thin", TABLES)
def test_a_forecast_follows_the_run_by_its_share(
    ladder: pd.DataFrame, believed: MakeFit, thin: str
) -> None:
    """Where the run is and elsewhere, of its own curve; of any other, not at all."""
    case = alone(ladder, believed, thin, draws=20)
    by = 0.3
    moved = case.shifted(by)
    parts = case.parts()
    share = parts["own"] ** 2 / sum(part**2 for part in parts.values())
    rows = case.fit.runs
    own = rows.iloc[[case.run, case.run]].assign(finetune_examples=[600.0, 50_000.0])
    (table,) = (p.table for p in case.fit.posteriors)
    others = rows[table.run_curve != case.curve]
    new = own.assign(base_model="new")
    before, after = (
        log_expected(predictor(c.fit), pd.concat([own, others, new])) for c in (case, moved)
    )
    followed = after - before
    np.testing.assert_allclose(followed[:, :2], by * share, rtol=1e-8)
    np.testing.assert_array_equal(followed[:, 2:], 0)
    assert 0.001 < share < 0.999  # neither nothing nor all of it


def test_curves_and_base_models_of_several_runs_keep_what_was_sampled(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    """In their own places, also where some runs are alone; names tell, not order."""
    for thin in TABLES[:3]:
        fit = believed(THINNED[thin](ladder), law="power", size=20)
        (posterior,) = fit.posteriors
        table, values = posterior.table, posterior.values
        assert not table.repeated.every and table.repeated.some
        runs = values["expected_log_loss"] - values["log_relative_loss"] - values["drift"]
        shown = table.run_alone == 0
        own = values["log_loss_ref_curve"][:, table.run_curve]
        np.testing.assert_allclose(own[:, shown], runs[:, shown], atol=1e-12)
        assert (np.abs(own - runs)[:, ~shown] > 1e-9).all()
        assert values["base_model_effect"].shape == (20, len(table.base_models))
        deviation = own_deviation(table, values)
        assert (np.abs(deviation) > 1e-9).all()


def test_where_no_curve_is_of_one_run_nothing_is_added(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    (posterior,) = believed(ladder, size=5).posteriors
    assert "alone_sd" not in posterior.values
    table = posterior.table
    np.testing.assert_array_equal(
        posterior.values["scale"], posterior.values["noise"][:, table.run_curve]
    )


# ------------------------------------------------------------------ the spread of a run


@pytest.mark.parametrize("thin", TABLES)
def test_the_prior_predictive_has_the_spread_of_all_terms(
    ladder: pd.DataFrame, believed: MakeFit, thin: str
) -> None:
    """In scale to the last digit, and in the draws of losses; the control is the noise alone."""
    (posterior,) = believed(THINNED[thin](ladder), law="power", size=1).posteriors
    table = posterior.table
    found = simulate_prior(table, NORMAL, 20_000, 5, None).values
    run = table.run_alone == 1
    parts = [
        own_scale(table, found)[:, table.run_curve],
        found["log_beta_curve_sd"][:, None] * found["log_relative_loss"],
    ]
    noise = found["noise"][:, table.run_curve]
    whole = np.sqrt(noise**2 + run * (parts[0] ** 2 + parts[1] ** 2))
    np.testing.assert_allclose(found["scale"], whole, rtol=1e-12)
    z = (found["log_loss"] - found["expected_log_loss"])[:, run]
    assert np.abs((z / whole[:, run]).std(axis=0) - 1).max() < 5 / np.sqrt(40_000)
    assert ((z / noise[:, run]).std(axis=0) > 1.2).all()


# Noise of a curve as of its task, and next to no floor, so that log losses are linear in beta.
EVEN: Priors = {
    **NORMAL,
    "logit_floor": replace(
        WEAK["logit_floor"], location=-30.0, scale=0.1, effect=0.1, scatter=0.01
    ),
    "noise": replace(WEAK["noise"], scatter=1e-9),
}


@pytest.mark.parametrize("thin", ["one and all, a curve each", "a run each", "one and all"])
def test_a_new_curve_spreads_as_the_likelihood_of_a_run_alone_says(
    ladder: pd.DataFrame, believed: MakeFit, monkeypatch: pytest.MonkeyPatch, thin: str
) -> None:
    """A forecast draws what the likelihood has in its scale: both spread by as much in all.

    By the width of the middle half and of 80 %, in units of the noise, where all terms are normal,
    so that their scales add in quadrature. The control is the noise alone, which is all that the
    scale of a forecast holds.
    """
    monkeypatch.setattr("tunecast.models.hierarchy.model.BASE_MODEL_DF", 1e6)
    fit = believed(THINNED[thin](ladder), law="power", size=DRAWS, priors=EVEN)
    (posterior,) = fit.posteriors
    table, values = posterior.table, posterior.values
    run = int(np.flatnonzero(table.run_alone)[-1])
    row = fit.runs.iloc[[run]]
    asked = predictor(fit)
    ready = check_targets(row.assign(base_model="new"), table)
    found = over(asked, row.assign(base_model="new"))
    noise = values["noise"][:, table.run_curve[run]]
    np.testing.assert_allclose(asked.draws(ready).scale[:, 0], noise, rtol=1e-6)
    cell = values["log_loss_ref_expected"][:, table.run_curve[run]]
    of_cell = cell + values["log_relative_loss"][:, run]
    # What is not of the cell: the new curve's own drift is no part of a run's scale.
    drift = found.values["drift"][:, 0]
    new = np.log(asked.draws(ready).loss[:, 0]) - drift - of_cell
    scale = values["scale"][:, run]
    lone = scale * np.random.default_rng(2).standard_normal(DRAWS)
    if not table.one_curve_per_base_model:
        # A base model adds its own, which a likelihood has in its mean.
        base = table.curve_base[table.run_curve[run]]
        lone = lone + values["base_model_effect"][:, base]

    def width(x: np.ndarray, share: float) -> float:
        low, high = np.quantile(x / noise, [0.5 - share / 2, 0.5 + share / 2])
        return float(high - low)

    for share in (0.5, 0.8):
        assert width(new, share) == pytest.approx(width(lone, share), rel=0.05)
        alone = width(noise * np.random.default_rng(3).standard_normal(DRAWS), share)
        assert alone < 0.8 * width(new, share)


# ------------------------------------------------------------------ fits

TRUTH = {"A": 300.0, "alpha": 0.25, "beta": 0.12, "E": 0.8}
LIMIT = 4.0


@pytest.fixture(scope="module")
def one_run_each() -> Fit:
    """A fit of 60 runs, of as many base models, each at its own size."""
    rng = np.random.default_rng(8)
    n = 60
    sizes, data = (10 ** rng.uniform(low, high, n) for low, high in ((8, 10), (3, 7)))
    law = get_law("multiplicative")
    truth = {**TRUTH, "alpha": {"model_size": TRUTH["alpha"]}}
    expected = law(data, {"model_size": sizes}, **truth)
    off = 0.01 * rng.standard_t(4, n) + 0.004 * rng.standard_t(5, n)
    runs = pd.DataFrame({
        "run_id": [f"r{i}" for i in range(n)], "task": "t", "method": "fmt",
        "base_model": [f"b{i}" for i in range(n)], "model_size": sizes,
        "finetune_examples": data, "loss": expected * np.exp(off), "status": "done",
    })  # fmt: skip
    return fit(runs, law="multiplicative", seed=1, progress=False)


def test_a_table_of_one_run_a_curve_is_fitted_quickly_and_its_truth_recovered(
    one_run_each: Fit,
) -> None:
    """No unknown but those of the cell and the scales; the control exchanges the exponents."""
    d = one_run_each.diagnostics
    assert d.converged
    (posterior,) = one_run_each.posteriors
    assert sum(v[0, 0].size for v in posterior.draws.values()) < 20
    own = posterior.parameters(0)
    drawn = {"alpha": own["alpha:model_size"], "beta": own["beta"]}
    other = {"alpha": "beta", "beta": "alpha"}
    for name, draws in drawn.items():
        assert abs(draws.mean() - TRUTH[name]) < LIMIT * draws.std()
        assert draws.std() < 0.3 * TRUTH[name]
        assert abs(draws.mean() - TRUTH[other[name]]) > LIMIT * draws.std()


def test_what_each_base_model_adds_is_found_again(one_run_each: Fit) -> None:
    """Its deviation goes with its run's residual, and is less where a run is but one."""
    (posterior,) = one_run_each.posteriors
    table, values = posterior.table, posterior.values
    residual = (table.log_loss - values["expected_log_loss"]).mean(axis=0)
    effect = values["base_model_effect"].mean(axis=0)[table.curve_base[table.run_curve]]
    assert np.corrcoef(residual, effect)[0, 1] > 0.9
    assert (np.abs(effect) < np.abs(residual)).mean() > 0.9
    assert 0.3 < np.polyfit(residual, effect, 1)[0] < 1
