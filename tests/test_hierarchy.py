"""The hierarchy: its NumPy and PyMC spellings agree, and so do its coordinates and the papers'."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunecast.models.fits import Fit
from tunecast.models.hierarchy import (
    Way,
    _Estimate,
    _lever,
    _partly_centred,
    _seen,
    at_factors,
    build,
    coordinates,
    decline,
    replay,
    simulate_prior,
    slope_weight,
)
from tunecast.models.inference import question_of
from tunecast.models.laws import LAWS, get_law
from tunecast.models.layout import Layout, lay_out
from tunecast.models.priors import WEAK

TWO = ("model_size", "pretrain_tokens")
ASKED = [(law, ()) for law in LAWS] + [
    (law, factors) for law in LAWS if law != "power" for factors in (TWO[:1], TWO)
]


def laid(runs: pd.DataFrame, law: str, factors: tuple[str, ...] = (), **ask: Any) -> Layout:
    return lay_out(runs, question_of(runs, law=law, factors=factors, **ask))


def same(a: Any, b: Any) -> bool:
    """Whether two parts of a belief are identical, value for value."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return (a is None and b is None) or np.array_equal(a, b)


# ------------------------------------------------------------------ one model, several spellings


@pytest.mark.parametrize(("law", "factors"), ASKED)
def test_a_replay_of_simulated_draws_is_the_belief_simulated(
    ladder: pd.DataFrame, law: str, factors: tuple[str, ...]
) -> None:
    layout = laid(ladder, law, factors)
    draws, belief = simulate_prior(layout, WEAK, 4, 7)
    again = replay(layout, WEAK, draws)
    assert all(same(getattr(belief, f.name), getattr(again, f.name)) for f in fields(belief))
    # The control: a belief does depend on its draws.
    draws["curve_mean"] = draws["curve_mean"] + 1e-9
    assert not same(belief.mean, replay(layout, WEAK, draws).mean)


def pymc_mean_and_scale(layout: Layout, draws: dict[str, np.ndarray]) -> list[list[np.ndarray]]:
    """Mean and scale that the PyMC likelihood has at each draw."""
    import pytensor

    model = build(layout, WEAK)
    unknowns = model.free_RVs
    assert {v.name for v in unknowns} == set(draws)
    location_scale = model["log_loss"].owner.inputs[-2:]
    mode = pytensor.compile.mode.Mode("py", optimizer=None)  # type: ignore[arg-type]
    compiled = pytensor.function(unknowns, location_scale, mode=mode, on_unused_input="ignore")
    n = len(draws["base_sd"])
    return [compiled(*[draws[v.name][i] for v in unknowns]) for i in range(n)]


def agree(layout: Layout) -> None:
    draws, belief = simulate_prior(layout, WEAK, 3, 3)
    for i, (mean, scale) in enumerate(pymc_mean_and_scale(layout, draws)):
        np.testing.assert_allclose(mean, belief.mean[i], rtol=1e-10, atol=1e-10)
        noise = belief.noise[i][layout.row_curve]
        np.testing.assert_allclose(scale, noise, rtol=1e-10)


@pytest.mark.parametrize(("law", "factors"), ASKED)
def test_pymc_and_numpy_compute_the_same_mean(
    ladder: pd.DataFrame, law: str, factors: tuple[str, ...]
) -> None:
    agree(laid(ladder, law, factors))


def test_pymc_and_numpy_agree_on_other_shapes_of_table(
    ladder: pd.DataFrame, zhang: pd.DataFrame
) -> None:
    """Several tasks and families, no cell column, one curve a base model."""
    agree(laid(zhang, "rectified", TWO[:1]))
    agree(laid(ladder, "multiplicative", TWO[:1], cell=("task",)))
    agree(laid(ladder[ladder["method"] == "fmt"], "additive", TWO[:1]))
    agree(laid(ladder, "power"))


@pytest.mark.parametrize("law", ["additive", "rectified"])  # between them, every coordinate
def test_log_density_and_gradient_are_finite_at_the_start(ladder: pd.DataFrame, law: str) -> None:
    import pytensor

    model = build(laid(ladder, law, TWO[:1]), WEAK)
    mode = pytensor.compile.mode.Mode("py", optimizer=None)  # type: ignore[arg-type]
    log_density, gradient = model.compile_fn([model.logp(), model.dlogp()], mode=mode)(
        model.initial_point()
    )
    assert np.isfinite(log_density)
    assert np.isfinite(gradient).all()
    assert len(gradient) == sum(v.size for v in model.initial_point().values())


# ------------------------------------------------------------------ the papers' parameters


def papers_parameters(fit: Fit, cell: tuple[str, ...]) -> dict[str, Any]:
    """Parameters that `Fit.summary` prints for a cell; of one draw, the median is the value."""
    table = fit.summary()
    for name, level in zip(fit.question.cell, cell, strict=True):
        table = table[table[name] == level]
    found: dict[str, Any] = {}
    for name, value in zip(table["parameter"], table["q50"], strict=True):
        head, _, factor = name.partition(":")
        if factor:
            found.setdefault(head, {})[factor] = value
        else:
            found[head] = value
    return found


def with_beta(printed: dict[str, Any], beta: float, D_ref: float) -> dict[str, Any]:
    """Parameters of another beta by which the loss at D_ref and its parts stay what they are."""
    head = "B" if "B" in printed else "A"
    moved = printed | {"beta": beta, head: printed[head] * D_ref ** (beta - printed["beta"])}
    if "D_l" in printed:
        moved["D_l"] = D_ref * (printed["D_l"] / D_ref) ** (printed["beta"] / beta)
    return moved


@pytest.mark.parametrize(("law", "factors"), [a for a in ASKED if a[1] or a[0] == "power"])
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
        member = fit.members[0]
        layout, formula = member.layout, get_law(law)
        for k, cell in enumerate(layout.cells):
            own = {name: value[0, k] for name, value in member.belief.cell.items()}
            if own["rate"] < np.log(0.02):  # D_l = exp(-onset / beta) leaves the numbers
                continue
            parts = at_factors(formula, factors, own, x, np)
            level, share, rate = (np.broadcast_to(part, 5) for part in parts)
            ours = [
                level[i] + decline(formula, log_u, share[i], rate[i], own.get("onset"), np)
                for i in range(5)
            ]
            printed = papers_parameters(fit, cell)
            gamma, delta = (printed.pop(name, {}) for name in ("gamma", "delta"))
            D_ref = 2.0 ** layout.log2_d_ref[k]
            for scale, errors in ((1.0, []), (2.0, worst)):
                for i in range(5):
                    X = {f: layout.x_ref[j] * np.exp(x[i, j]) for j, f in enumerate(factors)}
                    flatter = np.exp(-sum(delta[f] * x[i, j] for j, f in enumerate(factors)))
                    there = with_beta(printed, printed["beta"] * flatter, D_ref)
                    whole = sum(gamma[f] * x[i, j] for j, f in enumerate(factors))
                    theirs = np.log(formula(scale * D_ref * np.exp(log_u), X, **there)) - whole
                    errors.append(np.abs(theirs - ours[i]).max())
                if scale == 1.0:
                    assert max(errors) < 1e-10
    assert len(worst) >= 50
    assert np.median(worst) > 1e-3  # the control: twice the reference size is another curve


def test_level_and_share_are_those_at_the_reference_point() -> None:
    law = get_law("rectified")
    own = {"level": 0.4, "share": -1.2, "rate": -2.0}
    own |= {"alpha:model_size": 0.3, "gamma:model_size": 0.05, "delta:model_size": 0.02}
    level, share, rate = at_factors(law, ("model_size",), own, np.zeros((1, 1)), np)
    assert level[0] == pytest.approx(0.4, abs=1e-12)
    assert share[0] == pytest.approx(-1.2, abs=1e-12)
    assert rate[0] == -2.0
    # Of an unlimited size only the irreducible part is left, and gamma goes on lowering that.
    far, _, flat = at_factors(law, ("model_size",), own, np.full((1, 1), 200.0), np)
    floor = 0.4 + np.log(1 / (1 + np.exp(1.2)))
    assert far[0] == pytest.approx(floor - 0.05 * 200, abs=1e-9)
    assert flat[0] == pytest.approx(-2.0 - 0.02 * 200)
    assert decline(law, np.zeros(1), share, np.array(-2.0), np.array(0.8), np)[0] == pytest.approx(
        0, abs=1e-14
    )


def test_the_local_slope_is_what_the_sampler_takes_it_for() -> None:
    """d log L / d log D at D_ref = -(1 - share) * onset * beta, by central differences."""
    law, h = get_law("rectified"), 1e-5
    share, rate, onset = -0.7, np.log(0.3), 0.4
    ends = decline(law, np.array([-h, h]), share, np.array(rate), np.array(onset), np)
    expected = -0.3 / ((1 + np.exp(share)) * (1 + np.exp(-onset)))
    # The second difference errs by h^2, rounding by eps / h.
    assert (ends[1] - ends[0]) / (2 * h) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("bend", [0.4, 1.0, 6.0])
def test_the_bend_is_what_the_sampler_takes_it_for(bend: float) -> None:
    """Minus the second derivative over the squared slope, by central differences."""
    law, h = get_law("rectified"), 1e-3
    share, rate = -0.7, np.array(np.log(0.3))
    floor_share = 1 / (1 + np.exp(-share))
    onset = -np.log(bend * (1 - floor_share) + floor_share)
    below, at, above = decline(law, np.array([-h, 0, h]), share, rate, np.array(onset), np)
    slope, second = (above - below) / (2 * h), (above - 2 * at + below) / h**2
    # Both differences err by h^2, rounding of the second by eps / h^2: 1e-10 of a slope of 0.07.
    assert -second / slope**2 == pytest.approx(bend, abs=1e-5)


@pytest.mark.parametrize("law", [law for law in LAWS if law != "power"])
def test_the_lever_is_how_alpha_moves_the_slope_in_a_factor(law: str) -> None:
    """By central differences; off by what keeps the lever from zero, 0.03 in quadrature."""
    formula, h = get_law(law), 1e-5
    own = {name: np.array([0.3]) for name in coordinates(formula, TWO)}
    ends, *_ = at_factors(formula, TWO, own, np.array([[-h, 0], [h, 0]]), np)
    moved = -(ends[1] - ends[0]) / (2 * h) - own["gamma:model_size"][0]
    lever = _lever(formula, TWO, TWO[0], own, np)[0]
    assert np.sqrt(lever**2 - 0.03**2) * 0.3 == pytest.approx(moved, abs=1e-9)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("onset", [-5.0, 5.0])
def test_an_extreme_exponent_does_not_overflow(law: str, onset: float) -> None:
    log_u = np.linspace(-20, 20, 41)
    own = np.array(onset) if get_law(law).has("D_l") else None
    for rate in (-8.0, 1.5, 6.0):
        fall = decline(get_law(law), log_u, np.array(-1.0), np.array(rate), own, np)
        assert np.isfinite(fall).all()
        assert (np.diff(fall) <= 0).all()


@pytest.mark.parametrize("law", LAWS)
def test_every_prior_draw_gives_finite_losses(zhang: pd.DataFrame, law: str) -> None:
    layout = laid(zhang, law, TWO[:1] if law != "power" else ())
    _, belief = simulate_prior(layout, WEAK, 500, 0)
    assert np.isfinite(belief.mean).all()
    assert (belief.noise > 0).all() and (belief.noise_df > 2).all()


def test_coordinates_follow_the_law() -> None:
    assert coordinates(get_law("power"), ()) == ("share", "level", "rate")
    assert coordinates(get_law("additive"), ("a", "b")) == (
        "share", "gamma:a", "gamma:b", "delta:a", "delta:b", "split:a", "split:b",
        "alpha:a", "alpha:b", "level", "rate",
    )  # fmt: skip
    assert "onset" in coordinates(get_law("rectified"), ())


# ------------------------------------------------------------------ geometry


LOCATION, SCALE = 0.7, 1.8


def normal_scores(how: Any, error: float = 1.0) -> np.ndarray:
    """Standard errors by which mean and sd of the variable miss Normal(LOCATION, SCALE)."""
    n = 100_000
    rng = np.random.default_rng(5)

    def draw(name: str, at: Any, sd: Any, dims: tuple[str, ...], df: float | None) -> np.ndarray:
        assert df is None and dims == ("curve",)
        return np.asarray(at + error * sd * rng.standard_normal((n, 3)))

    at, sd = np.full(3, LOCATION), np.full(3, SCALE)
    if isinstance(how, _Estimate):
        got = _seen("z", at, sd, how, None, ("curve",), Way(draw, np))
    else:
        got = _partly_centred("z", at, sd, how, ("curve",), draw)
    of_mean = (got.mean(axis=0) - LOCATION) / (SCALE / np.sqrt(n))
    of_sd = (got.std(axis=0) - SCALE) / (SCALE / np.sqrt(2 * n))
    return np.abs([of_mean, of_sd])


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, np.array([0.0, 0.5, 1.0])], ids=repr)
def test_the_weight_changes_coordinates_and_not_the_distribution(weight: Any) -> None:
    """Within 5 standard errors; the control, a scale 5 % too wide, is 22 of them off."""
    assert normal_scores(weight).max() < 5
    assert normal_scores(weight, error=1.05)[1].min() > 10


def test_an_estimate_changes_coordinates_and_not_the_distribution() -> None:
    estimate = _Estimate(np.array([0.0, 3.0, -20.0]), np.array([0.0, 0.5, 400.0]))
    assert normal_scores(estimate).max() < 5
    assert normal_scores(estimate, error=1.05)[1].min() > 10


def test_what_an_estimate_leaves_open_is_sampled_in_its_own_units() -> None:
    """At 0 and one unit further lie mean and error of a normal prior met by a normal estimate."""
    value, precision = np.array([0.0, 3.0]), np.array([0.5, 400.0])

    def at(raw: float) -> np.ndarray:
        def draw(*unused: Any) -> np.ndarray:
            return np.full(2, raw)

        told = _Estimate(value, precision)
        found = _seen("z", LOCATION, SCALE, told, None, ("curve",), Way(draw, np))
        return np.asarray(found)

    both = SCALE**-2 + precision
    np.testing.assert_allclose(at(0.0), (LOCATION * SCALE**-2 + value * precision) / both)
    np.testing.assert_allclose(at(1.0) - at(0.0), both**-0.5)


def test_the_prior_of_cells_does_not_depend_on_the_losses(ladder: pd.DataFrame) -> None:
    """Losses set the weights alone: whatever they are, a cell's rate has the same moments."""
    n, moments = 40_000, []
    for losses in (ladder["loss"], 5 + 0.001 * np.arange(len(ladder))):
        layout = laid(ladder.assign(loss=losses), "power")
        _, belief = simulate_prior(layout, WEAK, n, 11)
        rate = belief.cell["rate"][:, 0]
        moments.append((rate.mean(), rate.std() / np.sqrt(n), np.log(rate.std())))
    (mean_a, se_a, log_sd_a), (mean_b, se_b, log_sd_b) = moments
    assert abs(mean_a - mean_b) < 5 * np.hypot(se_a, se_b)
    # Mixed scales give the rate heavier tails than a normal: a kurtosis of 6 covers them.
    assert abs(log_sd_a - log_sd_b) < 5 * np.sqrt(2 * (6 - 1) / (4 * n))


@pytest.mark.parametrize("law", ["additive", "rectified"])  # between them, every coordinate
def test_shifts_and_levers_change_no_prior(ladder: pd.DataFrame, law: str) -> None:
    """What a cell adds to its columns is normal with its own scale, whatever was drawn before."""
    n, five = 20_000, 5.0
    layout = laid(pd.concat([ladder, ladder.assign(task="other")]), law, TWO)
    draws, belief = simulate_prior(layout, WEAK, n, 13)
    assert ("cell", "level") in belief.effects
    before = np.column_stack([belief.base, belief.roots["gamma:model_size"]])
    before = (before - before.mean(axis=0)) / before.std(axis=0)

    def related(values: np.ndarray) -> float:
        return float(np.abs(before.T @ (values / values.std(axis=0))).max() / n)

    for (column, name), effect in belief.effects.items():
        z = effect / belief.effect_sd[column, name][:, None]
        assert np.abs(z.mean(axis=0)).max() < five / np.sqrt(n)
        assert np.abs(z.std(axis=0) - 1).max() < five / np.sqrt(2 * n)
        assert np.abs((1.05 * z).std(axis=0) - 1).min() > five / np.sqrt(2 * n)  # the control
        if name in ("level", "rate") or name.startswith("alpha"):
            assert related(z) < five / np.sqrt(n)
    # The control: what is drawn in alpha's place leans on gamma, and alpha itself does not.
    assert related(draws["mean_cell_slope:model_size"]) > five / np.sqrt(n)


def test_slope_weight_grows_with_what_a_curve_shows(ladder: pd.DataFrame) -> None:
    layout = laid(ladder, "power")
    weight = slope_weight(layout, WEAK)
    assert ((0 <= weight) & (weight <= 1)).all()
    rng = np.random.default_rng(0)
    noisy = ladder.assign(loss=ladder["loss"] * np.exp(0.3 * rng.standard_normal(len(ladder))))
    assert slope_weight(laid(noisy, "power"), WEAK).mean() < weight.mean() / 2


def test_a_curve_of_one_data_size_has_weight_zero(ladder: pd.DataFrame) -> None:
    own = (ladder["method"] == "lora") & (ladder["base_model"] == "ladder-0.1m")
    thin = ladder[~own | (ladder["finetune_examples"] == 600)]
    layout = laid(thin, "rectified", TWO[:1])
    single = np.flatnonzero(layout.curve_low == layout.curve_high)
    assert len(single) == 1
    assert slope_weight(layout, WEAK)[single] == 0
    _, belief = simulate_prior(layout, WEAK, 10, 0)
    assert np.isfinite(belief.mean).all()


def test_every_run_its_own_base_model(ladder: pd.DataFrame) -> None:
    """What a table without the column base_model becomes: one run a curve."""
    layout = laid(ladder.assign(base_model=ladder["run_id"]), "power")
    _, belief = simulate_prior(layout, WEAK, 10, 0)
    assert np.isfinite(belief.mean).all()
    agree(layout)


def test_one_curve_for_each_base_model_makes_one_term(ladder: pd.DataFrame) -> None:
    """Its effect is the curve's own deviation, in the order of the base models."""
    runs = ladder[ladder["method"] == "fmt"].copy()
    names = {"ladder-0.1m": "c", "ladder-0.4m": "a", "ladder-1.2m": "b"}
    layout = laid(runs.assign(base_model=runs["base_model"].map(names)), "rectified", TWO[:1])
    assert layout.one_curve_per_base_model
    draws, belief = simulate_prior(layout, WEAK, 50, 0)
    assert "base_effect" not in draws and "scatter_level" not in draws
    own = {name: value[:, layout.curve_cell] for name, value in belief.cell.items()}
    expected, *_ = at_factors(get_law("rectified"), TWO[:1], own, layout.curve_x, np)
    np.testing.assert_allclose(
        belief.base[:, layout.curve_base], belief.level - expected, rtol=0, atol=1e-12
    )
    assert not laid(ladder, "power").one_curve_per_base_model
