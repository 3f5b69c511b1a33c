"""The hierarchy: one model, whatever it is declared with, and the laws that are in it."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from thinned import THINNED

from tunecast.models.fits.fit import Fit
from tunecast.models.hierarchy.numpy_backends import (
    Simulation,
    geometry_of,
    log_density,
    replay,
    simulate_prior,
    starting_point,
)
from tunecast.models.hierarchy.priors import WEAK
from tunecast.models.hierarchy.table import Table, index_runs, spec_of
from tunecast.models.laws import LAWS, Law, get_law
from tunecast.models.laws.law import by_factor, expected_at, log_relative_loss
from tunecast.models.laws.positive import NumPy

TWO = ("model_size", "pretrain_tokens")
WITH_FACTORS = [law for law in LAWS if get_law(law).has("alpha")]
ASKED = [(law, ()) for law in LAWS] + [(law, k) for law in WITH_FACTORS for k in (TWO[:1], TWO)]


def indexed(runs: pd.DataFrame, law: str, factors: tuple[str, ...] = (), **ask: Any) -> Table:
    return index_runs(runs, spec_of(runs, law=law, factors=factors, **ask))


def simulated(table: Table, size: int, seed: int) -> Simulation:
    return simulate_prior(table, WEAK, size, seed, geometry_of(table, WEAK))


def drawn(law: str, n: int, seed: int) -> dict[str, np.ndarray]:
    """Quantities of n cells near the middle of their priors, with two factors."""
    rng = np.random.default_rng(seed)
    shape = {False: (n,), True: (2, n)}
    return {
        q.name: q.prior.location + 0.5 * q.prior.scale * rng.standard_normal(shape[q.per_factor])
        for q in get_law(law).quantities
    }


# ------------------------------------------------------------------ one model, several backends
# (PyMC's are in test_pymc_model.py, the compiled one in test_compile_density.py)


@pytest.mark.parametrize(("law", "factors"), ASKED)
def test_a_replay_of_simulated_draws_is_the_simulation(
    ladder: pd.DataFrame, law: str, factors: tuple[str, ...]
) -> None:
    table = indexed(ladder, law, factors)
    found = simulated(table, 4, 7)
    again = replay(table, WEAK, found.draws, found.geometry)
    assert [*again.values, "log_loss"] == list(found.values)  # saved draws have no new runs
    for name, value in again.values.items():
        np.testing.assert_array_equal(value, found.values[name])
        assert value.shape == (4, *found.shape(found.dims[name]))
    # The control: a replay does depend on its draws.
    raw = "log_loss_ref_curve_raw"
    other = {**found.draws, raw: found.draws[raw] + 1e-9}
    moved = replay(table, WEAK, other, found.geometry).values["expected_log_loss"]
    assert not np.array_equal(moved, found.values["expected_log_loss"])


@pytest.mark.parametrize("law", LAWS)
def test_log_density_is_finite_at_the_start(ladder: pd.DataFrame, law: str) -> None:
    table = indexed(ladder, law, TWO[:1])
    ways = geometry_of(table, WEAK)
    for seed in range(5):
        assert np.isfinite(log_density(table, WEAK, starting_point(table, WEAK, seed, ways), ways))


def test_chains_start_apart(ladder: pd.DataFrame) -> None:
    table = indexed(ladder, "rectified", TWO[:1])
    ways = geometry_of(table, WEAK)
    a, b, again = (starting_point(table, WEAK, seed, ways) for seed in (1, 2, 1))
    assert all(np.abs(a[name] - b[name]).min() > 0 for name in a)
    assert all(np.array_equal(a[name], again[name]) for name in a)


# ------------------------------------------------------------------ the papers' parameters


def printed_parameters(fit: Fit, cell: tuple[str, ...]) -> dict[str, Any]:
    """Parameters that `Fit.summary` prints for a cell; of one draw, the median is the value."""
    table = fit.summary()
    for name, level in zip(fit.spec.cell, cell, strict=True):
        table = table[table[name] == level]
    law = fit.posteriors[0].table.law
    found: dict[str, Any] = {p.name: {} for p in law.parameters if p.per_factor}
    for name, value in zip(table["parameter"], table["q50"], strict=True):
        head, _, factor = name.partition(":")
        if factor:
            found.setdefault(head, {})[factor] = value
        else:
            found[head] = value
    return found


def with_beta(p: dict[str, Any], beta: float, D_ref: float, X: dict[str, float]) -> dict[str, Any]:
    """Parameters of another beta by which the loss at D_ref and its parts stay what they are."""
    old, moved = p["beta"], p | {"beta": beta}
    if "D_c" in p:
        endless = p["A"]
        for k, a in p["alpha"].items():
            endless = endless * X[k] ** -a
        ratio = p["D_c"] / D_ref / endless ** (1 / old)
        kept = endless * (1 + ratio) ** (old - beta)
        moved["A"] = p["A"] * kept / endless
        return moved | {"D_c": ratio * kept ** (1 / beta) * D_ref}
    head = "B" if "B" in p else "A"
    moved[head] = p[head] * D_ref ** (beta - old)
    if "D_l" in p:
        moved["D_l"] = D_ref * (p["D_l"] / D_ref) ** (old / beta)
    if "D_b" in p:
        moved["beta_2"] = p["beta_2"] * beta / old
        bent = 1 + (D_ref / p["D_b"]) ** (1 / p["f"])
        turn = (old - p["beta_2"]) - (beta - moved["beta_2"])
        moved["A"] *= bent ** (turn * p["f"])
    return moved


@pytest.mark.parametrize(("law", "factors"), ASKED)
def test_a_curve_without_deviations_is_the_law_with_the_printed_parameters(
    ladder: pd.DataFrame, believed: Callable[..., Fit], law: str, factors: tuple[str, ...]
) -> None:
    """Equal to 1e-10, over cells, factors and data sizes; with twice the D_ref they must differ."""
    rng = np.random.default_rng(2)
    worst: list[float] = []
    x = rng.normal(0, 2, (5, len(factors)))
    log_u = np.linspace(-6, 8, 15)
    for seed in range(8):
        fit = believed(ladder, law=law, factors=factors, size=1, seed=seed)
        (posterior,) = fit.posteriors
        table, formula = posterior.table, get_law(law)
        for k, cell in enumerate(table.cells):
            own = {q.name: posterior.values[q.name][0, ..., k : k + 1] for q in table.quantities}
            if own["log_beta"] < np.log(0.02):  # D_l = exp(-logit_share / beta) leaves the numbers
                continue
            log_x = {f: x[:, j] for j, f in enumerate(factors)}
            curve = expected_at(formula, by_factor(formula, own, factors), log_x, NumPy)
            curve = {name: np.broadcast_to(value, 5) for name, value in curve.items()}
            which = np.repeat(np.arange(5), len(log_u))
            relative = log_relative_loss(formula, np.tile(log_u, 5), curve, NumPy, which)
            ours = curve["log_loss_ref"][:, None] + relative.reshape(5, -1)
            printed = printed_parameters(fit, cell)
            gamma, delta = (printed.pop(name, {}) for name in ("gamma", "delta"))
            D_ref = 2.0 ** table.log2_d_ref[k]
            for scale, errors in ((1.0, []), (2.0, worst)):
                for i in range(5):
                    X = {f: table.x_ref[j] * np.exp(x[i, j]) for j, f in enumerate(factors)}
                    flatter = np.exp(-sum(delta[f] * x[i, j] for j, f in enumerate(factors)))
                    there = with_beta(printed, printed["beta"] * flatter, D_ref, X)
                    whole = sum(gamma[f] * x[i, j] for j, f in enumerate(factors))
                    theirs = np.log(formula(scale * D_ref * np.exp(log_u), X, **there)) - whole
                    errors.append(np.abs(theirs - ours[i]).max())
                if scale == 1.0:
                    assert max(errors) < 1e-10
    assert len(worst) >= 50
    assert np.median(worst) > 1e-3  # the control: twice the reference size is another curve


# What is left of a law's log loss at the reference data size when a factor with a positive alpha
# is endless, by hand.
ENDLESS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "multiplicative": lambda q: q["log_loss_ref"] - np.log1p(np.exp(-q["logit_floor"])),
    "additive": lambda q: q["log_loss_ref"] + np.log(
        1 / (1 + np.exp(q["logit_floor"]))
        + 1 / (1 + np.exp(-q["logit_floor"])) / (1 + np.exp(q["log_A_over_E"]).sum(axis=0))
    ),
    "rectified": lambda q: q["log_loss_ref"] - np.log1p(np.exp(-q["logit_floor"])),
    "kaplan": lambda q: (
        q["log_loss_ref"] - np.exp(q["log_beta"]) * np.log1p(np.exp(-q["log_ratio"]))
    ),
    "broken": lambda q: q["log_loss_ref"] - np.log1p(np.exp(-q["logit_floor"])),
}  # fmt: skip


def test_every_law_with_factors_is_among_them() -> None:
    assert set(ENDLESS) == set(WITH_FACTORS)


@pytest.mark.parametrize("name", LAWS)
def test_quantities_are_those_at_the_reference_point(name: str) -> None:
    law, n = get_law(name), 6
    own = drawn(name, n, 1)
    factors = TWO if name in WITH_FACTORS else ()
    named = by_factor(law, own, factors)
    here = expected_at(law, named, {k: np.zeros(n) for k in factors}, NumPy)
    assert set(here) == {q.name for q in law.quantities if not q.per_factor}
    for quantity, value in here.items():
        np.testing.assert_allclose(value, own[quantity], rtol=0, atol=1e-12)
    relative = log_relative_loss(law, np.zeros(n), here, NumPy)
    np.testing.assert_allclose(relative, 0, atol=1e-14)


@pytest.mark.parametrize("name", WITH_FACTORS)
def test_of_endless_factors_only_their_part_is_gone(name: str) -> None:
    """And gamma goes on lowering the whole, delta beta."""
    law, n, far = get_law(name), 6, 2000.0
    own = drawn(name, n, 2)
    own[law.exponent] = np.abs(own[law.exponent]) + 0.1
    there = expected_at(law, by_factor(law, own, TWO), {k: np.full(n, far) for k in TWO}, NumPy)
    left = ENDLESS[name](own) - far * own["gamma"].sum(axis=0)
    np.testing.assert_allclose(there["log_loss_ref"], left, rtol=1e-9)
    flat = own["log_beta"] - far * own["delta"].sum(axis=0)
    np.testing.assert_allclose(there["log_beta"], flat, rtol=1e-12)


# ------------------------------------------------------------------ what the sampler takes it for

STEP = 1e-5  # central differences err by STEP^2 of a third derivative, rounding by 1e-16 / STEP
CENTRAL = 1e-8


@pytest.mark.parametrize("name", LAWS)
def test_the_local_slope_in_the_data_size_is_the_curves(name: str) -> None:
    """d log L / d log D at the reference is -beta * exp(log_slope)."""
    law, n = get_law(name), 40
    own = drawn(name, n, 3)
    below, above = (log_relative_loss(law, np.full(n, h), own, NumPy) for h in (-STEP, STEP))
    measured = -(above - below) / (2 * STEP)
    slope = np.exp(own["log_beta"] + law.log_slope(own, NumPy))
    np.testing.assert_allclose(slope, measured, rtol=0, atol=CENTRAL)
    # The control: the slope of beta alone, or of all but a hundredth of it, is another.
    assert np.abs(np.exp(own["log_beta"]) - measured).max() > 100 * CENTRAL
    assert np.abs(0.99 * slope - measured).max() > 100 * CENTRAL


@pytest.mark.parametrize("name", WITH_FACTORS)
def test_the_local_slope_in_a_factor_is_the_curves(name: str) -> None:
    """d log L / d log X_k is -gamma_k - factor_slope_k times its exponent."""
    law, n = get_law(name), 40
    own = drawn(name, n, 4)
    moved = np.broadcast_to(law.factor_slope(own, NumPy), (2, n))
    for k, factor in enumerate(TWO):
        below, above = (
            expected_at(
                law, by_factor(law, own, TWO),
                {f: np.full(n, h if f == factor else 0.0) for f in TWO}, NumPy,
            )["log_loss_ref"]
            for h in (-STEP, STEP)
        )  # fmt: skip
        measured = -(above - below) / (2 * STEP)
        slope = own["gamma"][k] + moved[k] * own[law.exponent][k]
        np.testing.assert_allclose(slope, measured, rtol=0, atol=CENTRAL)
        # The control: another factor's exponent gives another slope.
        other = own["gamma"][k] + moved[k] * own[law.exponent][1 - k]
        assert np.abs(other - measured).max() > 100 * CENTRAL


@pytest.mark.parametrize("name", LAWS)
def test_an_extreme_exponent_does_not_overflow(name: str) -> None:
    law, log_u = get_law(name), np.linspace(-20, 20, 41)
    free = [
        q.name for q in law.quantities
        if not q.per_factor and q.name not in ("log_loss_ref", "log_beta")
    ]  # fmt: skip
    for ends in itertools.product((-5.0, 5.0), repeat=len(free)):
        for log_beta in (-8.0, 1.5, 6.0):
            own = dict(zip(free, map(np.array, ends), strict=True)) | {"log_beta": log_beta}
            fall = log_relative_loss(law, log_u, own, NumPy)
            assert np.isfinite(fall).all()
            assert (np.diff(fall) <= 0).all()


@pytest.mark.parametrize("name", WITH_FACTORS)
@pytest.mark.parametrize("exponent", [-3.0, 3.0])
def test_a_factor_far_away_does_not_overflow(name: str, exponent: float) -> None:
    law, log_x = get_law(name), np.linspace(-60, 60, 13)
    own = drawn(name, 13, 5)
    own[law.exponent] = np.full_like(own[law.exponent], exponent)
    found = expected_at(law, by_factor(law, own, TWO), dict.fromkeys(TWO, log_x), NumPy)
    relative = log_relative_loss(law, np.full(13, 3.0), found, NumPy)
    assert all(np.isfinite(value).all() for value in (*found.values(), relative))


@pytest.mark.parametrize("law", LAWS)
def test_every_prior_draw_gives_finite_losses(zhang: pd.DataFrame, law: str) -> None:
    found = simulated(indexed(zhang, law, TWO[:1]), 500, 0).values
    assert np.isfinite(found["expected_log_loss"]).all()
    assert np.isfinite(found["log_loss"]).all()
    assert (found["noise"] > 0).all() and (found["noise_df"] > 2).all()


# ------------------------------------------------------------------ quantities

QUANTITIES = {
    "power": "logit_floor log_loss_ref log_beta",
    "multiplicative": "logit_floor gamma delta alpha log_loss_ref log_beta",
    "additive": "logit_floor gamma delta log_A_over_E alpha log_loss_ref log_beta",
    "rectified": "logit_floor gamma delta logit_data_share alpha log_loss_ref log_beta",
    "kaplan": "gamma delta log_ratio log_beta alpha_over_beta log_loss_ref",
    "broken": (
        "logit_floor gamma delta log_break log_steeper log_width alpha log_loss_ref log_beta"
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_law_is_sampled_by_its_quantities(ladder: pd.DataFrame, name: str) -> None:
    table = indexed(ladder, name, TWO)
    assert [q.name for q in table.quantities] == QUANTITIES[name].split()
    found = simulated(table, 2, 0)
    for q in table.quantities:
        lead = ("factor",) if q.per_factor else ()
        assert found.dims[q.name] == (*lead, "cell")
        assert found.dims[f"{q.name}_method"] == (*lead, "method")
        assert (f"{q.name}_curve" in found.values) == q.varies
        assert f"{q.name}_mean_raw" in found.draws and f"{q.name}_method_raw" in found.draws


def test_two_laws_mean_the_same_by_the_name_of_a_quantity() -> None:
    """Prior tables have one row for each name."""
    known: dict[str, Any] = {}
    for law in LAWS.values():
        for q in law.quantities:
            assert known.setdefault(q.name, q) == q
            assert WEAK[q.name] == q.prior
    assert not {"base_model", "noise", "noise_df", "drift_task", "drift_curve"} & set(known)


# ------------------------------------------------------------------ priors


def test_the_prior_of_cells_does_not_depend_on_the_losses(ladder: pd.DataFrame) -> None:
    """Losses set the coordinates alone: whatever they are, a cell's beta has the same moments."""
    n, moments = 40_000, []
    for losses in (ladder["loss"], 5 + 0.001 * np.arange(len(ladder))):
        table = indexed(ladder.assign(loss=losses), "power")
        log_beta = simulated(table, n, 11).values["log_beta"][:, 0]
        moments.append((log_beta.mean(), log_beta.std() / np.sqrt(n), np.log(log_beta.std())))
    (mean_a, se_a, log_sd_a), (mean_b, se_b, log_sd_b) = moments
    assert abs(mean_a - mean_b) < 5 * np.hypot(se_a, se_b)
    # Mixed scales give log beta heavier tails than a normal: a kurtosis of 6 covers them.
    assert abs(log_sd_a - log_sd_b) < 5 * np.sqrt(2 * (6 - 1) / (4 * n))


@pytest.mark.parametrize("law", WITH_FACTORS)
def test_offsets_and_multipliers_change_no_prior(ladder: pd.DataFrame, law: str) -> None:
    """What a grouping adds to a cell is normal with its own scale, whatever was drawn before."""
    n, five = 20_000, 5.0
    table = indexed(pd.concat([ladder, ladder.assign(task="other")]), law, TWO)
    assert [g.name for g in table.groupings] == ["task", "method", "cell"]
    found = simulated(table, n, 13)
    values = found.values
    before = np.column_stack([values["base_model_effect"], values["gamma_mean"][:, 0]])
    before = (before - before.mean(axis=0)) / before.std(axis=0)

    def related(effect: np.ndarray) -> float:
        effect = effect.reshape(n, -1)
        return float(np.abs(before.T @ (effect / effect.std(axis=0))).max() / n)

    def check(name: str, z: np.ndarray) -> None:
        assert np.abs(z.mean(axis=0)).max() < five / np.sqrt(n), name
        assert np.abs(z.std(axis=0) - 1).max() < five / np.sqrt(2 * n), name
        # The control: a scale that is 5 % too wide.
        assert np.abs((1.05 * z).std(axis=0) - 1).min() > five / np.sqrt(2 * n), name

    for q in table.quantities:
        for g in table.groupings:
            name = f"{q.name}_{g.name}"
            z = values[name] / values[f"{name}_sd"][..., None]
            check(name, z)
            if q.name in ("log_loss_ref", "log_beta", table.law.exponent):
                assert related(z) < five / np.sqrt(n), name
    # A curve's log beta, which is sampled as its local slope, is normal around what is expected.
    expected = values["log_beta"][:, table.curve_cell] - np.einsum(
        "nfk,kf->nk", values["delta"][..., table.curve_cell], table.curve_x
    )
    z = (values["log_beta_curve"] - expected) / values["log_beta_curve_sd"][:, None]
    check("log_beta_curve", z)
    # The control: what is drawn in alpha's place leans on gamma; alpha itself does not. Kaplan's
    # exponent hardly moves the slope.
    if table.law.exponent == "alpha":
        assert related(found.draws["alpha_cell_raw"]) > five / np.sqrt(n)


# ------------------------------------------------------------------ unusual tables


def test_a_curve_of_one_data_size(ladder: pd.DataFrame) -> None:
    own = (ladder["method"] == "lora") & (ladder["base_model"] == "ladder-0.1m")
    table = indexed(ladder[~own | (ladder["finetune_examples"] == 600)], "rectified", TWO[:1])
    assert (table.curve_low == table.curve_high).sum() == 1
    assert np.isfinite(simulated(table, 10, 0).values["expected_log_loss"]).all()


@pytest.mark.parametrize("thin", THINNED)
def test_what_a_curve_cannot_show_is_what_is_expected_of_it(
    ladder: pd.DataFrame, thin: str
) -> None:
    table = indexed(THINNED[thin](ladder), "power")
    values, sizes = simulated(table, 50, 2).values, table.curve_sizes
    expected = {
        "log_noise_curve": (3, values["log_noise_task"][:, table.curve_task]),
        "logit_floor_curve": (3, values["logit_floor"][:, table.curve_cell]),
        "log_beta_curve": (2, values["log_beta"][:, table.curve_cell]),
    }
    for name, (needed, usual) in expected.items():
        shows = sizes >= needed
        own = values[name] if shows.all() else values[f"{name}_or_mean"]
        np.testing.assert_allclose(own[:, ~shows], usual[:, ~shows], atol=1e-12)
        assert (np.abs(own - usual)[:, shows] > 1e-9).all()
        if shows.any() and not shows.all():
            np.testing.assert_allclose(own[:, shows], values[name], rtol=1e-10)
        assert (name in values) == shows.any()
    assert ("drift_curve" in values) == (sizes > 2).any()


def test_every_run_its_own_base_model(ladder: pd.DataFrame) -> None:
    """What a table without the column base_model becomes: one run a curve."""
    table = indexed(ladder.assign(base_model=ladder["run_id"]), "power")
    assert np.isfinite(simulated(table, 10, 0).values["expected_log_loss"]).all()


def test_one_curve_for_each_base_model_makes_one_term(ladder: pd.DataFrame) -> None:
    """Its effect is the curve's own deviation, in the order of the base models."""
    runs = ladder[ladder["method"] == "fmt"].copy()
    names = {"ladder-0.1m": "c", "ladder-0.4m": "a", "ladder-1.2m": "b"}
    runs = runs.assign(base_model=runs["base_model"].map(names))
    for law in LAWS:
        table = indexed(runs, law, TWO[:1])
        assert table.one_curve_per_base_model
        found = simulated(table, 50, 0)
        assert "log_loss_ref_curve_raw" not in found.draws
        assert "log_loss_ref_curve_sd" not in found.values
        formula: Law = table.law
        own = {q.name: found.values[q.name][..., table.curve_cell] for q in table.quantities}
        x = {k: table.curve_x[:, i] for i, k in enumerate(table.factors)}
        expected = expected_at(formula, by_factor(formula, own, table.factors), x, NumPy)
        deviation = found.values["log_loss_ref_curve"] - expected["log_loss_ref"]
        np.testing.assert_allclose(
            found.values["base_model_effect"][:, table.curve_base], deviation, rtol=0, atol=1e-11
        )
    # The control: several curves for each, which deviate from it.
    several = simulated(indexed(ladder, "power"), 2, 0)
    assert not several.table.one_curve_per_base_model
    assert "log_loss_ref_curve_raw" in several.draws
