"""Coordinates: they change how an unknown is sampled, and nothing of what it is."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunecast.models.hierarchy.backend import raw
from tunecast.models.hierarchy.geometry import (
    CENTRED,
    LEAST_MULTIPLIER,
    NON_CENTRED,
    Coordinate,
    Geometry,
)
from tunecast.models.hierarchy.numpy_backends import (
    geometry_of,
    log_density,
    replay,
    simulate_prior,
)
from tunecast.models.hierarchy.priors import WEAK
from tunecast.models.hierarchy.table import Table, index_runs, spec_of
from tunecast.models.laws import LAWS, get_law
from tunecast.models.laws.law import by_factor, expected_at, log_relative_loss
from tunecast.models.laws.positive import NumPy

TWO = ("model_size", "pretrain_tokens")
WITH_FACTORS = [law for law in LAWS if get_law(law).has("alpha")]


def indexed(runs: pd.DataFrame, law: str, factors: tuple[str, ...] = (), **ask: Any) -> Table:
    return index_runs(runs, spec_of(runs, law=law, factors=factors, **ask))


# ------------------------------------------------------------------ one coordinate

LOCATION, SCALE = 0.7, 1.8
OTHERWISE: dict[str, Any] = {
    "shifted": {"offset": np.array([-3.0, 0.2, 8.0])},
    "shifted and scaled": {"offset": 2.5, "multiplier": np.array([0.04, 1.0, 3.0])},
}


def normal_scores(coordinate: Coordinate, error: float = 1.0) -> np.ndarray:
    """Standard errors by which mean and sd of the unknown miss Normal(LOCATION, SCALE)."""
    n = 100_000
    rng = np.random.default_rng(5)

    def draw(at: Any, sd: Any) -> np.ndarray:
        return np.asarray(at + error * sd * rng.standard_normal((n, 3)))

    at, sd = np.full(3, LOCATION), np.full(3, SCALE)
    got = coordinate.unknown(draw, at, sd, NumPy)
    of_mean = (got.mean(axis=0) - LOCATION) / (SCALE / np.sqrt(n))
    of_sd = (got.std(axis=0) - SCALE) / (SCALE / np.sqrt(2 * n))
    return np.abs([of_mean, of_sd])


@pytest.mark.parametrize("more", [{}, *OTHERWISE.values()], ids=["plain", *OTHERWISE])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, np.array([0.0, 0.5, 1.0])], ids=repr)
def test_the_weight_changes_coordinates_and_not_the_distribution(
    weight: Any, more: Mapping[str, Any]
) -> None:
    """Within 5 standard errors; the control, a scale 5 % too wide, is 22 of them off."""
    coordinate = Coordinate(weight=weight, **more)
    assert normal_scores(coordinate).max() < 5
    assert normal_scores(coordinate, error=1.05)[1].min() > 10


@pytest.mark.parametrize("more", [{}, *OTHERWISE.values()], ids=["plain", *OTHERWISE])
def test_an_estimate_changes_coordinates_and_not_the_distribution(more: Mapping[str, Any]) -> None:
    estimate, precision = np.array([0.0, 3.0, -20.0]), np.array([0.0, 0.5, 400.0])
    coordinate = Coordinate(estimate=estimate, precision=precision, **more)
    assert normal_scores(coordinate).max() < 5
    assert normal_scores(coordinate, error=1.05)[1].min() > 10


def at(coordinate: Coordinate, value: float) -> np.ndarray:
    """The unknown where the raw variable has a value."""
    n = 2
    found = coordinate.unknown(lambda *prior: np.full(n, value), LOCATION, SCALE, NumPy)
    return np.asarray(found)


def test_what_an_estimate_leaves_open_is_sampled_in_its_own_units() -> None:
    """At 0 and one unit further lie mean and error of a normal prior met by a normal estimate."""
    value, precision = np.array([0.0, 3.0]), np.array([0.5, 400.0])
    told = Coordinate(estimate=value, precision=precision)
    both = SCALE**-2 + precision
    np.testing.assert_allclose(at(told, 0.0), (LOCATION * SCALE**-2 + value * precision) / both)
    np.testing.assert_allclose(at(told, 1.0) - at(told, 0.0), both**-0.5)


def test_centred_is_the_unknown_and_non_centred_its_standardised_deviation() -> None:
    assert at(CENTRED, 0.3) == pytest.approx(0.3)
    assert at(NON_CENTRED, 0.3) == pytest.approx(LOCATION + 0.3 * SCALE)
    # An offset and a multiplier are of what is sampled.
    assert at(Coordinate(offset=2.0, multiplier=0.5, weight=1.0), 0.3) == pytest.approx(
        (0.3 - 2.0) / 0.5
    )


def test_a_student_t_stays_one() -> None:
    """The scale of the raw variable says all: the family is the unknown's own."""
    coordinate = Coordinate(estimate=np.array(3.0), precision=np.array(7.0), offset=0.4)
    asked: list[tuple[float, float]] = []

    def draw(location: Any, scale: Any) -> np.ndarray:
        asked.append((float(location), float(scale)))
        return np.asarray(location + scale * 2.0)  # two scales above its location

    found = coordinate.unknown(draw, LOCATION, SCALE, NumPy)
    assert float(found) == pytest.approx(LOCATION + 2.0 * SCALE)
    assert len(asked) == 1 and asked[0] != (LOCATION, SCALE)


# ------------------------------------------------------------------ the textbook model


def textbook(values: Mapping[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """Variables of the model without a geometry, from unknowns: scales as their logarithms."""
    return {
        name: values[name] if name in values else np.log(values[name.removeprefix("log_")])
        for name in names
    }


def log_jacobian(
    table: Table, geometry: Geometry, point: Mapping[str, np.ndarray], names: list[str]
) -> tuple[float, float]:
    """Log of ``|d raw / d unknown|``, and how far the unknowns are from affine in their own raw.

    An unknown is affine in its raw variable given those declared before, element by element. So
    the Jacobian is triangular, and a step of any length gives its diagonal exactly: one replay has
    a draw for the point, and one for each element of each raw variable moved by 1, and by 2.
    """
    sizes = {name: value.size for name, value in point.items()}
    count = sum(sizes.values())
    batch = {
        name: np.repeat(np.asarray(value)[None], 2 * count + 1, axis=0)
        for name, value in point.items()
    }
    start = 1
    for name, size in sizes.items():
        flat = batch[name].reshape(2 * count + 1, size)
        flat[start : start + size] += np.eye(size)
        flat[start + count : start + count + size] += 2 * np.eye(size)
        batch[name] = flat.reshape(batch[name].shape)
        start += size
    found = textbook(replay(table, WEAK, batch, geometry).values, names)
    total = bent = 0.0
    start = 1
    for name, size in sizes.items():
        own = name.removesuffix("_raw")
        value = found[own if own in found else f"log_{own}"].reshape(2 * count + 1, size)
        once = np.diag(value[start : start + size] - value[0])
        twice = np.diag(value[start + count : start + count + size] - value[0])
        bent = max(bent, float(np.abs(twice / (2 * once) - 1).max()))
        total -= float(np.log(np.abs(once)).sum())
        start += size
    return total, bent


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("shape", ["three cells", "one cell", "a curve each", "two tasks"])
def test_without_a_geometry_the_textbook_model_comes_out(
    ladder: pd.DataFrame, law: str, shape: str
) -> None:
    """Densities of raw variables and of unknowns differ by the Jacobian of one in the other."""
    runs, ask = ladder, {}
    if shape == "one cell":
        ask = {"cell": ("task",)}
    elif shape == "a curve each":
        runs = ladder[ladder["method"] == "lora"]
    elif shape == "two tasks":
        runs = pd.concat([ladder, ladder.assign(task="other", loss=1.3 * ladder["loss"])])
    table = indexed(runs, law, TWO if shape == "three cells" else TWO[:1], **ask)
    geometry = geometry_of(table, WEAK)
    names = list(simulate_prior(table, WEAK, 1, 0, None).draws)
    found = simulate_prior(table, WEAK, 2, 4, geometry)
    for i in range(2):
        point = {name: value[i] for name, value in found.draws.items()}
        unknowns = textbook({name: value[i] for name, value in found.values.items()}, names)
        jacobian, bent = log_jacobian(table, geometry, point, names)
        assert bent < 1e-6
        ours = log_density(table, WEAK, point, geometry)
        theirs = log_density(table, WEAK, unknowns, None)
        # Differences of unknowns over a step of their raw variable, some of them far from 0.
        assert theirs - jacobian == pytest.approx(ours, rel=1e-9, abs=1e-6)
        # The controls: without the Jacobian, with its inverse, or at another point.
        assert abs(theirs - ours) > 1e-2 and abs(theirs + jacobian - ours) > 1e-2
        unknowns["log_noise"] = unknowns["log_noise"] + 1e-4
        assert abs(log_density(table, WEAK, unknowns, None) - jacobian - ours) > 1e-5


# ------------------------------------------------------------------ what coordinates mean


class Told(Geometry):
    """A geometry that keeps what it said of each unknown."""

    said: dict[str, Coordinate]

    def coordinate(self, name: str, values: Mapping[str, Any], xp: Any) -> Coordinate:
        self.said[name] = super().coordinate(name, values, xp)
        return self.said[name]


def told(table: Table, draws: int = 5) -> tuple[Geometry, dict[str, Any], dict[str, Coordinate]]:
    """The geometry of a table, prior draws in it, and the coordinates at them."""
    geometry = Told(table, geometry_of(table, WEAK).estimates)
    geometry.said = {}
    found = simulate_prior(table, WEAK, draws, 3, geometry)
    assert set(map(raw, geometry.said)) <= set(found.draws)
    return geometry, found.values, geometry.said


def sampled(said: Coordinate, unknown: np.ndarray) -> np.ndarray:
    """What a coordinate samples of an unknown."""
    return np.asarray(said.offset + said.multiplier * unknown)


@pytest.mark.parametrize("law", LAWS)
def test_curves_are_sampled_by_what_their_runs_show(ladder: pd.DataFrame, law: str) -> None:
    table = indexed(ladder, law, TWO[:1])
    geometry, values, said = told(table)
    n = len(table.curve_cell)
    # Their mean log loss over their own data sizes.
    runs = np.eye(n)[table.run_curve]
    mean = values["expected_log_loss"] @ runs / runs.sum(axis=0)
    of_loss = said["log_loss_ref_curve"]
    np.testing.assert_allclose(sampled(of_loss, values["log_loss_ref_curve"]), mean, rtol=1e-10)
    np.testing.assert_array_equal(of_loss.estimate, geometry.estimates.curve_log_loss)
    # The log of their slope at the reference, by central differences.
    step, own = 1e-5, dict(values)
    for q in table.quantities:
        if not q.per_factor:
            own[q.name] = values.get(f"{q.name}_curve", values.get(f"{q.name}_expected"))
    slope = -sum(
        sign * log_relative_loss(table.law, np.full(n, sign * step), own, NumPy) for sign in (-1, 1)
    ) / (2 * step)
    of_beta = said["log_beta_curve"]
    # The slope to 1e-8 of itself: extreme draws are beyond what differences tell.
    near = np.abs(np.log(slope)) < 5
    assert near.sum() > n
    found = sampled(of_beta, values["log_beta_curve"])
    np.testing.assert_allclose(found[near], np.log(slope)[near], rtol=0, atol=1e-5)
    assert np.abs(values["log_beta_curve"][near] - np.log(slope)[near]).max() > 0.1  # the control
    # Where noise is smaller, runs tell more of both.
    known = geometry.estimates
    for of, told_of in ((of_loss, known.curve_runs), (of_beta, known.curve_slope_precision)):
        np.testing.assert_allclose(of.precision * values["noise"] ** 2, np.tile(told_of, (5, 1)))


@pytest.mark.parametrize("law", LAWS)
def test_levels_are_sampled_by_what_their_curves_show(
    ladder: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, law: str
) -> None:
    """Curves as a cell and its base models have them, to first order in the factors."""
    monkeypatch.setattr("tunecast.models.hierarchy.geometry.LEAST_MULTIPLIER", 0.0)
    table = indexed(ladder, law, TWO[:1])
    _, values, said = told(table)
    cell = {q.name: values[q.name] for q in table.quantities}
    h, cells = 1e-5, len(table.cells)

    def effect(name: str) -> np.ndarray:
        return sampled(said[f"{name}_method"], values[f"{name}_method"])

    slope = np.zeros((5, cells))
    if table.factors:
        here = by_factor(table.law, cell, table.factors)
        ends = [expected_at(table.law, here, {TWO[0]: np.full(cells, x)}, NumPy) for x in (-h, h)]
        slope = -(ends[1]["log_loss_ref"] - ends[0]["log_loss_ref"]) / (2 * h)
    x = table.curve_x[:, 0] if table.factors else np.zeros(len(table.curve_cell))
    loss = cell["log_loss_ref"][:, table.curve_cell] - slope[:, table.curve_cell] * x
    loss = loss + values["base_model_effect"][:, table.curve_base]
    log_slope = cell["log_beta"] + table.law.log_slope(cell, NumPy)
    assert np.abs(effect("log_loss_ref") - cell["log_loss_ref"]).max() > 1e-3  # the controls
    assert np.abs(effect("log_beta") - cell["log_beta"]).max() > 0.1
    for k in range(cells):
        own = table.curve_cell == k
        np.testing.assert_allclose(
            effect("log_loss_ref")[:, k], loss[:, own].mean(axis=1), rtol=0, atol=1e-7
        )
        flatter = cell["delta"][:, 0, k] * x[own].mean() if table.factors else 0.0
        np.testing.assert_allclose(effect("log_beta")[:, k], log_slope[:, k] - flatter, atol=1e-12)
        if table.factors:
            fall = -np.polyfit(x[own], loss[:, own].T, 1)[0]
            np.testing.assert_allclose(effect(table.law.exponent)[:, 0, k], fall, rtol=0, atol=1e-7)


@pytest.mark.parametrize("law", WITH_FACTORS)
def test_the_multiplier_is_how_the_exponent_moves_the_slope_in_a_factor(
    ladder: pd.DataFrame, law: str
) -> None:
    """Off by what keeps it from zero, in quadrature."""
    table = indexed(ladder, law, TWO)
    _, values, said = told(table)
    own = {q.name: values[q.name] for q in table.quantities}
    moved = table.law.factor_slope(own, NumPy)
    multiplier = said[f"{table.law.exponent}_method"].multiplier
    np.testing.assert_allclose(multiplier**2 - LEAST_MULTIPLIER**2, moved**2, rtol=0, atol=1e-12)
    assert (multiplier >= LEAST_MULTIPLIER).all()


@pytest.mark.parametrize("bend", [0.4, 1.0, 6.0])
def test_the_bend_is_what_the_sampler_takes_it_for(ladder: pd.DataFrame, bend: float) -> None:
    """Minus the second derivative over the squared slope, by central differences, where the logit
    of the data share is sampled as 0."""
    table = indexed(ladder, "rectified")
    estimates = geometry_of(table, WEAK).estimates
    levels = {
        name: replace(level, curvature=np.full(3, bend)) for name, level in estimates.levels.items()
    }
    floor, mean = -0.7, 0.4
    values = {
        "logit_floor_mean": np.array(floor), "logit_floor_method": np.zeros(3),
        "logit_data_share_mean": np.array(mean),
    }  # fmt: skip
    geometry = Geometry(table, replace(estimates, levels=levels))
    said = geometry.coordinate("logit_data_share_method", values, NumPy)
    # The unknown is the effect of a level on top of the mean.
    logit_share = mean - np.asarray(said.offset)
    own = {
        "logit_floor": np.full(3, floor),
        "logit_data_share": logit_share,
        "log_beta": np.log(0.3),
    }
    h = 1e-3
    below, at, above = (
        log_relative_loss(table.law, np.full(3, x), own, NumPy) for x in (-h, 0.0, h)
    )
    slope, second = (above - below) / (2 * h), (above - 2 * at + below) / h**2
    # Both differences err by h^2, rounding of the second by eps / h^2: 1e-10 of a slope of 0.07.
    np.testing.assert_allclose(-second / slope**2, bend, rtol=0, atol=1e-5)


@pytest.mark.parametrize("law", LAWS)
def test_where_each_base_model_has_one_curve_its_effect_is_sampled_by_its_runs(
    ladder: pd.DataFrame, law: str
) -> None:
    names = {"ladder-0.1m": "c", "ladder-0.4m": "a", "ladder-1.2m": "b"}
    runs = ladder[ladder["method"] == "fmt"]
    table = indexed(runs.assign(base_model=runs["base_model"].map(names)), law, TWO[:1])
    _, values, said = told(table)
    runs_of = np.eye(3)[table.curve_base[table.run_curve]]
    mean = values["expected_log_loss"] @ runs_of / runs_of.sum(axis=0)
    found = sampled(said["base_model_effect"], values["base_model_effect"])
    np.testing.assert_allclose(found, mean, rtol=1e-10)
    estimate = table.log_loss @ runs_of / runs_of.sum(axis=0)
    np.testing.assert_allclose(said["base_model_effect"].estimate, estimate)


def test_what_lies_between_the_first_grouping_and_cells_is_not_centred(zhang: pd.DataFrame) -> None:
    table = indexed(zhang, "rectified", TWO[:1])
    assert [g.name for g in table.groupings] == ["task", "method", "family", "cell"]
    _, _, said = told(table, 2)
    for q in table.quantities:
        assert said[f"{q.name}_mean"] is CENTRED
        assert said[f"{q.name}_method"] is said[f"{q.name}_family"] is NON_CENTRED
        for name in (f"{q.name}_task", f"{q.name}_cell"):
            assert said[name] is not NON_CENTRED
    assert said["log_noise"] is NON_CENTRED and said["log_noise_task"] is CENTRED


def test_the_geometry_is_chosen_by_the_runs(ladder: pd.DataFrame) -> None:
    """Another table of losses has other coordinates, another order of rows the same ones."""
    table = indexed(ladder, "power")
    _, values, said = told(table)
    louder = indexed(ladder.assign(loss=ladder["loss"] * 1.1), "power")
    _, _, other = told(louder)
    np.testing.assert_allclose(
        other["log_loss_ref_curve"].estimate, said["log_loss_ref_curve"].estimate + np.log(1.1)
    )
    mixed = indexed(ladder.sample(frac=1, random_state=1), "power")
    _, again, _ = told(mixed)
    for name in ("A", "E", "beta", "log_loss_ref_curve"):
        np.testing.assert_allclose(again[name], values[name], rtol=1e-9)
