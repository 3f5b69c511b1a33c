"""Slope drift: its expansion within the data, its walk beyond, and both in forecasts."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunecast.models.fits.fit import Fit
from tunecast.models.hierarchy import drift
from tunecast.models.hierarchy.drift import (
    END_SLOPE,
    KAPPA,
    KNOT,
    REST_SLOPE,
    SLOPES,
    TERMS,
    Continuation,
    basis,
    eigenfunctions,
)
from tunecast.models.hierarchy.keyed import Keyed
from tunecast.models.hierarchy.predict import Predictor
from tunecast.models.hierarchy.priors import WEAK, Priors
from tunecast.models.hierarchy.targets import check_targets

type MakeFit = Callable[..., Fit]
type Values = dict[str, np.ndarray]

S_TASK, S_CURVE, SIZE = 0.01, 0.006, 20_000
KINDS = ("drift_task", "drift_curve")
# Of a variance and a correlation of so many draws, and of the ratio of two such variances.
OF_VARIANCE, OF_CORRELATION, OF_RATIO = 5 * np.sqrt(np.array([2, 1, 4]) / SIZE)

KNOWN: Priors = {
    **WEAK,
    **{
        kind: replace(WEAK[kind], location=np.log(scale), scale=0.0)
        for kind, scale in zip(KINDS, (S_TASK, S_CURVE), strict=True)
    },
}


# ------------------------------------------------------------------ the integrated walk, simulated

STEPS = 64  # a unit, which is half a range


@cache
def simulated() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times from -1 to 3, integrated walks less their line over -1 to 1, and the walks as drawn.

    The slope has variance 1 after a unit of time.
    """
    x = np.linspace(-1, 3, 4 * STEPS + 1)
    steps = np.random.default_rng(1).standard_normal((SIZE, len(x) - 1)) / np.sqrt(STEPS)
    slope = np.cumsum(steps, axis=1) - steps / 2  # in the middle of a step
    path = np.pad(np.cumsum(slope, axis=1), ((0, 0), (1, 0))) / STEPS
    inside = np.abs(x) <= 1
    weight = np.where(inside, 1.0, 0.0)
    weight[[0, 2 * STEPS]] = 0.5
    design = np.stack([np.ones_like(x), x], axis=1)
    line = np.linalg.solve((design.T * weight) @ design, (design.T * weight) @ path.T)
    return x, path - (design @ line).T, path


def over_range(values: np.ndarray) -> np.ndarray:
    """Integral over -1 to 1 of what stands at the times of `simulated`."""
    return np.asarray(np.trapezoid(values[..., : 2 * STEPS + 1], dx=1 / STEPS, axis=-1))


def close(found: Any, expected: Any, *errors: float) -> bool:
    """Whether variances agree as far as draws tell, relative to what is expected."""
    return bool(np.all(np.abs(np.asarray(found) / np.asarray(expected) - 1) < sum(errors)))


# ------------------------------------------------------------------ the expansion


def quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Points and weights that integrate smooth functions over -1 to 1."""
    points, weights = np.polynomial.legendre.leggauss(40)
    return points, weights


def test_eigenfunctions_are_orthonormal_and_orthogonal_to_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, weight = quadrature()

    def off(f: np.ndarray) -> float:
        products = (f * weight) @ np.vstack([f, np.ones_like(x), x]).T
        return float(np.abs(products - np.eye(TERMS, TERMS + 2)).max())

    assert off(eigenfunctions(x)) < 1e-12
    monkeypatch.setattr(drift, "KAPPA", tuple(1.01 * kappa for kappa in KAPPA))  # the control
    assert off(eigenfunctions(x)) > 1e-3


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_eigenfunctions_go_on_as_lines_with_the_slope_of_their_end(end: float) -> None:
    h = 1e-4
    inside, edge, near, far = eigenfunctions(end * np.array([1 - h, 1, 1 + h, 4])).T
    np.testing.assert_allclose((near - edge) / h, (edge - inside) / h, rtol=1e-6)
    np.testing.assert_allclose((far - edge) / 3, (near - edge) / h, rtol=1e-8)
    assert (np.abs(near - edge) > h).all()  # the control: they do not go on as constants


def test_coefficients_are_those_of_an_integrated_walk_less_its_line() -> None:
    """Variances 1 / kappa^4, no correlation, 95 % of all variance; and they are an expansion.

    What a walk has to do with a coefficient is the eigenfunction itself. The control is the walk
    with its line, of whose variance they hold little, and where that is not so.
    """
    x, walks, with_line = simulated()
    f = eigenfunctions(x)
    expected = np.array(KAPPA) ** -4.0
    coefficients = np.stack([over_range(walks * row) for row in f])
    assert close(coefficients.var(axis=1), expected, OF_VARIANCE, 1 / STEPS)
    assert not close(coefficients.var(axis=1), expected[::-1], OF_VARIANCE, 1 / STEPS)
    assert abs(np.corrcoef(coefficients)[0, 1]) < OF_CORRELATION

    def share(paths: np.ndarray) -> float:
        return float(expected.sum() / over_range(paths**2).mean())

    def told(paths: np.ndarray) -> np.ndarray:
        return coefficients @ paths[:, : 2 * STEPS + 1] / SIZE / expected[:, None]

    assert share(walks) == pytest.approx(0.95, abs=0.02) and share(with_line) < 0.1
    assert np.abs(told(walks) - f[:, : 2 * STEPS + 1]).max() < 0.1
    assert np.abs(told(with_line) - f[:, : 2 * STEPS + 1]).max() > 1


def test_the_slope_at_the_end_is_that_of_the_terms_and_of_the_rest() -> None:
    """26/35 for a range of two units; the control is the slope of a walk with its line."""
    _, walks, with_line = simulated()
    last = slice(2 * STEPS - 1, 2 * STEPS + 1)
    at_end, whole = (np.diff(w[:, last], axis=1).var() * STEPS**2 for w in (walks, with_line))
    # Half a step before the end.
    assert close(at_end, END_SLOPE, OF_VARIANCE, 2 / STEPS)
    assert not close(whole, END_SLOPE, OF_VARIANCE, 2 / STEPS)
    assert END_SLOPE == 26 / 35
    of_terms = np.diff(eigenfunctions(np.array([1.0, 2.0])), axis=1)[:, 0]
    assert REST_SLOPE == pytest.approx(END_SLOPE - (of_terms**2 * np.array(KAPPA) ** -4.0).sum())
    assert 0 < REST_SLOPE < 0.4 * END_SLOPE


def test_the_basis_grows_as_the_range_to_the_power_of_one_and_a_half() -> None:
    x = np.linspace(-1.5, 1.5, 9)
    low, high = np.full(9, 8.0), np.full(9, 12.0)
    found = basis(10 + 2 * x, low, high)
    expected = 2**1.5 * eigenfunctions(x) / np.square(KAPPA)[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # The same shape over twice the range; the control is that with the same scale it is not.
    wide = basis(10 + 4 * x, low - 2, high + 2)
    np.testing.assert_allclose(wide, 2**1.5 * found, rtol=1e-12)
    assert np.abs(wide - found).max() > 0.1
    # Nothing drifts within one size, nor beyond by these.
    assert not basis(10 + x, high, high).any()


# ------------------------------------------------------------------ the walk beyond


def walk(at: float, *, whose: object = "t", seed: int = 0, low: float = 8.0) -> np.ndarray:
    """What a task's walk adds at log2 of a data size beyond the line; 8 to 12 were seen."""
    going_on = Continuation({"drift_task": np.full(SIZE, S_TASK)}, Keyed(seed, SIZE))
    return np.broadcast_to(going_on.beyond("drift_task", whose, at, low, 12.0), SIZE)


@pytest.mark.parametrize("side", [1, -1])
def test_innovations_of_the_slope_add_up_as_written(side: int) -> None:
    """With each of them 1, the slope grows by a knot's scale at the middle of each knot.

    It starts with what the terms leave of it, of which there is none where one size was seen.
    """
    asked: list[tuple[str, object, object]] = []

    def one(*key: Any) -> np.ndarray:
        asked.append(key)
        return np.ones(5)

    edge = 12.0 if side == 1 else 8.0
    going_on = Continuation({"drift_curve": np.full(5, S_CURVE)}, Keyed(0, 5), one)
    found = going_on.beyond("drift_curve", "mine", edge + side * 1.0, 8.0, 12.0)
    knots = edge + side * KNOT * (np.arange(4) + 0.5)
    of_knots = np.sqrt(KNOT) * np.abs(edge + side - knots).sum()
    np.testing.assert_allclose(found, S_CURVE * (of_knots + np.sqrt(2 * REST_SLOPE)), rtol=1e-12)
    assert {key[:2] for key in asked} == {("drift_curve", "mine")}
    what = [key[2] for key in asked]
    assert what[0] == ("high" if side == 1 else "low")
    np.testing.assert_allclose(sorted(what[1:]), sorted(knots))  # type: ignore[type-var]
    alone = going_on.beyond("drift_curve", "mine", edge + side * 1.0, edge, edge)
    np.testing.assert_allclose(alone, S_CURVE * of_knots, rtol=1e-12)


def test_a_walk_belongs_to_whom_it_is_of() -> None:
    """One path: drawn again it is the same, at another size correlated; another's is another."""
    for at in (8.0, 9.3, 12.0):
        assert not walk(at).any()
    again = np.corrcoef(walk(14.0), walk(14.0))[0, 1]
    further = np.corrcoef(walk(14.0), walk(15.0))[0, 1]
    assert again == pytest.approx(1) and 0.8 < further < 0.999
    for other in (walk(14.0, whose="u"), walk(14.0, seed=1), walk(6.0)):
        assert abs(np.corrcoef(walk(14.0), other)[0, 1]) < OF_CORRELATION


# ------------------------------------------------------------------ in forecasts


def steep() -> pd.DataFrame:
    """Runs at data sizes of 2^8 to 2^12, so that edges lie on the knots."""
    rows = [
        {"task": "t", "method": m, "base_model": f"b{b}", "finetune_examples": 2.0**k}
        for m in ("fmt", "lora")
        for b in range(2)
        for k in range(8, 13)
    ]
    frame = pd.DataFrame(rows)
    loss = 1 + frame["finetune_examples"] ** -0.2
    return frame.assign(loss=loss, status="done", run_id=[str(i) for i in frame.index])


def at(doublings: Any, **values: str) -> pd.DataFrame:
    """Targets at powers of 2, of a known curve unless told otherwise."""
    row = {"task": "t", "method": "fmt", "base_model": "b0"} | values
    return pd.DataFrame(row | {"finetune_examples": 2.0 ** np.atleast_1d(doublings)})


def moved(
    believed: MakeFit,
    *targets: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    by_size: bool = True,
    **ask: str,
) -> tuple[np.ndarray, Values]:
    """What drift adds to log loss: expected draws with it less those without; and all draws."""
    ask = {"law": "power"} | ask
    fit = believed(steep() if runs is None else runs, size=SIZE, priors=KNOWN, **ask)
    (posterior,) = fit.posteriors
    values = dict(posterior.values)
    drifts = {name for name in values if name.startswith("drift_")}
    assert drifts == {*KINDS, *(f"{kind}_sd" for kind in KINDS)}
    still = values | {name: np.zeros_like(values[name]) for name in drifts}
    ready = check_targets(pd.concat(targets), posterior.table)
    drifting, calm = (
        np.log(Predictor(posterior.table, KNOWN, v, 5, by_size=by_size).draws(ready).expected)
        for v in (values, still)
    )
    return drifting - calm, values


def variance(beyond: Any, half: float) -> np.ndarray:
    """Of a drift of scale 1 so many doublings beyond a range of half that length, as modelled."""
    past = np.asarray(beyond, float)
    of_terms = sum(
        (np.sqrt(2) + slope * past / half) ** 2 / kappa**4
        for slope, kappa in zip(SLOPES, KAPPA, strict=True)
    )
    return np.asarray(half**3 * of_terms + REST_SLOPE * half * past**2 + past**3 / 3)


def test_what_is_modelled_is_the_integrated_walk() -> None:
    """Less what the rest beyond two terms adds to the level at the end, at most 8 % of it.

    Controls: the walk alone, and the terms alone.
    """
    x, walks, _ = simulated()
    past = np.array([0.25, 0.5, 1.0, 2.0])
    of_walk = walks[:, np.searchsorted(x, 1 + past - 1e-9)].var(axis=0)
    kappa = (2 * np.arange(TERMS + 1, 60)[:, None] + 1) * np.pi / 4
    left_out = (2 / kappa**4 + 4 * past / kappa**3).sum(axis=0)
    assert (left_out < 0.08 * of_walk).all()
    assert close(variance(past, 1.0) + left_out, of_walk, OF_VARIANCE, 1 / STEPS)
    assert not close(past**3 / 3, of_walk, 0.4)
    assert not close(variance(past, 1.0) - past**3 / 3 + left_out, of_walk, 0.1)


def test_inside_the_data_drift_is_that_of_the_coefficients(believed: MakeFit) -> None:
    """Those of the task and of the curve itself; another curve's are refused."""
    sizes = np.array([8.0, 8.7, 10.0, 11.9, 12.0])
    found, values = moved(believed, at(sizes, method="lora", base_model="b1"))
    shape = basis(sizes, np.full(5, 8.0), np.full(5, 12.0))
    of_task = values["drift_task"][:, :, 0]
    for curve in range(4):
        expected = (of_task + values["drift_curve"][:, :, curve]) @ shape
        # All but draws of the prior whose losses are beyond any number.
        share = np.isclose(found, expected, atol=1e-10).mean()
        assert share > 0.999 if curve == 3 else share < 0.001
    for k, coefficient in enumerate(values["drift_curve"][:, :, 3].T):
        assert close(coefficient.var(), S_CURVE**2, OF_VARIANCE), k


@pytest.mark.parametrize("side", [1, -1])
def test_beyond_the_data_task_and_curve_go_on(believed: MakeFit, side: int) -> None:
    """Variances add up; curves of a task share the task's. Control: a curve's own part alone.

    The midpoint rule over the knots errs by KNOT^2 / 4 k^2 of the walk's part.
    """
    past = np.array([1.0, 2.0, 4.0])
    far = (12 if side == 1 else 8) + side * past
    found, _ = moved(believed, at(far), at(far, base_model="b1"))
    by_knots = KNOT**2 / 4
    expected = variance(past, 2.0)
    assert close(found[:, :3].var(axis=0), (S_TASK**2 + S_CURVE**2) * expected, OF_RATIO, by_knots)
    assert not close(found[:, :3].var(axis=0), S_TASK**2 * expected, OF_RATIO, by_knots)
    shared = np.array([np.cov(found[:, i], found[:, i + 3])[0, 1] for i in range(3)])
    assert close(shared, S_TASK**2 * expected, 2 * OF_RATIO, by_knots)
    # One path: at 4 doublings it has passed the point at 2.
    assert np.corrcoef(found[:, 1], found[:, 2])[0, 1] > 0.8


def test_the_task_goes_on_beyond_its_runs_and_a_curve_beyond_its_own(believed: MakeFit) -> None:
    """A curve of two small sizes, whose coefficients were not sampled: forecasts draw them.

    Up to the task's largest size the task's part is that of its coefficients.
    """
    runs = steep()
    short = (runs["base_model"] == "b1") & (runs["method"] == "fmt")
    known = runs[~(short & (runs["finetune_examples"] > 2.0**9))].reset_index(drop=True)
    found, values = moved(believed, at([12, 15], base_model="b1"), at(9), runs=known)
    assert values["drift_curve"].shape[2] == 3
    inside, beyond = found[:, :2].var(axis=0)
    own, shared = S_CURVE**2 * variance([3, 6], 0.5), S_TASK**2 * variance([0, 3], 2.0)
    assert close([inside, beyond], own + shared, OF_RATIO)
    assert not close([inside, beyond], own, OF_RATIO)
    # The control: the other curves have sampled theirs, and this one none of them.
    of_task = values["drift_task"][:, :, 0] @ basis(
        np.array([12.0]), np.array([8.0]), np.array([12.0])
    )
    alone = found[:, 0] - of_task[:, 0]
    for coefficient in values["drift_curve"].reshape(SIZE, -1).T:
        assert abs(np.corrcoef(alone, coefficient)[0, 1]) < OF_CORRELATION


def test_a_new_curve_and_a_new_task_draw_their_own(believed: MakeFit) -> None:
    """A new curve shares the task's, a new task nothing; its own curves share its own."""
    new = {"base_model": "new"}
    found, _ = moved(
        believed, at(11), at(11, **new), at(11, task="u", **new),
        at(11, task="u", method="lora", **new),
    )  # fmt: skip
    total, shape = S_TASK**2 + S_CURVE**2, basis(*np.array([[11.0], [8.0], [12.0]]))
    assert close(found.var(axis=0), total * (shape**2).sum(), OF_VARIANCE)
    between = np.corrcoef(found.T)
    expected = np.eye(4)
    expected[0, 1] = expected[1, 0] = expected[2, 3] = expected[3, 2] = S_TASK**2 / total
    assert np.abs(between - expected).max() < OF_CORRELATION
    assert np.abs(between - np.eye(4)).max() > OF_CORRELATION  # the control


def test_a_new_task_drifts_alike_whatever_else_is_asked(believed: MakeFit) -> None:
    """Also where methods have other ranges of data sizes."""
    runs = steep()
    apart = runs[(runs["method"] == "lora") | (runs["finetune_examples"] <= 2.0**10)]
    alone, together = (
        moved(believed, *targets, runs=apart.reset_index(drop=True))[0]
        for targets in ((at(13, task="u"),), (at(13, task="u"), at(13, task="u", method="lora")))
    )
    np.testing.assert_allclose(alone[:, 0], together[:, 0], atol=1e-12)
    assert np.abs(alone[:, 0] - together[:, 1]).max() > 1e-3  # the control


def test_sizes_of_a_new_base_model_drift_apart_unless_told_otherwise(believed: MakeFit) -> None:
    """As its other deviations: of a curve's own, or alike for all sizes; beyond and within."""
    runs = steep().assign(model_size=lambda f: f["base_model"].map({"b0": 1e6, "b1": 4e6}))
    targets = pd.concat([
        at(k, base_model="new").assign(model_size=size) for k in (9, 15) for size in (1e6, 3e6)
    ])  # fmt: skip
    apart, _ = moved(believed, targets, runs=runs, law="multiplicative")
    alike, _ = moved(believed, targets, runs=runs, by_size=False, law="multiplicative")
    for i in (0, 2):
        np.testing.assert_allclose(alike[:, i], alike[:, i + 1], atol=1e-10)
        shared = np.corrcoef(apart[:, i], apart[:, i + 1])[0, 1]
        assert shared == pytest.approx(S_TASK**2 / (S_TASK**2 + S_CURVE**2), abs=OF_CORRELATION)


# ------------------------------------------------------------------ its scales


@pytest.mark.parametrize("kind", KINDS)
def test_scales_have_their_priors_and_are_learned_apart(believed: MakeFit, kind: str) -> None:
    """Log-normal, per doubling; that tasks drift says nothing of curves."""
    (posterior,) = believed(steep(), law="power", size=SIZE).posteriors
    logs = {k: np.log(posterior.values[f"{k}_sd"]) for k in KINDS}
    z = (logs[kind] - WEAK[kind].location) / WEAK[kind].scale
    assert abs(z.mean()) < 5 / np.sqrt(SIZE)
    assert abs(z.std() - 1) < 5 / np.sqrt(2 * SIZE)
    other = KINDS[1 - KINDS.index(kind)]  # the control: the other has another scale
    assert abs((logs[kind] - WEAK[other].location).mean()) > 0.1
    assert abs(np.corrcoef(logs[kind], logs[other])[0, 1]) < OF_CORRELATION
