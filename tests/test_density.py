"""Machine code for the log density: what it computes, and for whom it serves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunecast.models import density, machine
from tunecast.models.density import DensityError, compiled_density, inputs, value_and_gradient
from tunecast.models.hierarchy import build, log_density, simulate_prior, starting_point
from tunecast.models.inference import question_of
from tunecast.models.laws import LAWS
from tunecast.models.layout import Layout, lay_out
from tunecast.models.priors import WEAK, PriorTable, get_priors


def laid(runs: pd.DataFrame, law: str = "rectified") -> Layout:
    return lay_out(runs.reset_index(drop=True), question_of(runs, law=law))


@pytest.mark.parametrize("law", ["power", "additive", "rectified"])  # all coordinates among them
def test_the_density_in_numpy_is_the_one_of_pymc(ladder: pd.DataFrame, law: str) -> None:
    import pytensor

    layout = laid(ladder, law)
    draws, _ = simulate_prior(layout, WEAK, 2, 5)
    mode = pytensor.compile.mode.Mode("py", optimizer=None)  # type: ignore[arg-type]
    theirs = build(layout, WEAK).compile_logp(mode=mode)
    for i in range(2):
        point = {name: values[i] for name, values in draws.items()}
        assert log_density(layout, WEAK, point) == pytest.approx(float(theirs(point)), rel=1e-10)


def test_chains_start_apart_where_the_density_is_finite(ladder: pd.DataFrame) -> None:
    layout = laid(ladder)
    a, b = (starting_point(layout, WEAK, seed) for seed in (1, 2))
    assert np.isfinite(log_density(layout, WEAK, a))
    assert all(np.abs(a[name] - b[name]).min() > 0 for name in a)
    again = starting_point(layout, WEAK, 1)
    assert all(np.array_equal(a[name], again[name]) for name in a)


def check(layout: Layout, priors: PriorTable, seed: int) -> None:
    """Compare value and slopes in every direction with the density in NumPy."""
    model, taken = compiled_density(layout, priors), inputs(layout, priors)
    x = model.initial_point_func(seed)
    value, gradient = value_and_gradient(model, x)
    assert value == pytest.approx(log_density(layout, priors, taken.named(x)), rel=1e-11)
    step = 1e-5 * np.eye(len(x))
    up, down = (
        np.array([log_density(layout, priors, taken.named(x + s)) for s in side])
        for side in (step, -step)
    )
    scale = 1 + np.abs(gradient).max()
    np.testing.assert_allclose(gradient, (up - down) / 2e-5, rtol=1e-5, atol=1e-8 * scale)


@pytest.mark.parametrize("law", LAWS)
def test_slopes_are_finite_far_out(ladder: pd.DataFrame, law: str) -> None:
    """Where warm-up wanders, the value is finite; a slope that is not would end the trajectory."""
    layout = laid(ladder, law)
    model = compiled_density(layout, WEAK)
    rng = np.random.default_rng(2)
    start = model.initial_point_func(0)
    for _ in range(40):
        _, gradient = value_and_gradient(model, start + 3 * rng.standard_normal(len(start)))
        assert np.isfinite(gradient).all()


def test_chains_share_the_code(ladder: pd.DataFrame) -> None:
    layout = laid(ladder)
    model = compiled_density(layout, WEAK)
    points = [model.initial_point_func(seed) for seed in range(8)]
    alone = [value_and_gradient(model, x) for x in points]

    def many(k: int) -> bool:
        value, gradient = alone[k]
        again = (value_and_gradient(model, points[k]) for _ in range(300))
        return all(v == value and np.array_equal(g, gradient) for v, g in again)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(many, range(8)))


@pytest.mark.parametrize("law", ["power", "additive", "rectified"])
def test_value_and_slopes_are_those_of_numpy(ladder: pd.DataFrame, law: str) -> None:
    check(laid(ladder, law), WEAK, 3)


def test_the_same_without_cell_columns_and_with_a_curve_for_each_base_model(
    ladder: pd.DataFrame,
) -> None:
    one = ladder[(ladder["task"] == ladder["task"].iloc[0]) & (ladder["method"] == "lora")]
    layout = lay_out(one.reset_index(drop=True), question_of(one, law="multiplicative", cell=()))
    assert layout.one_curve_per_base_model and not layout.columns
    check(layout, WEAK, 3)


def test_one_code_serves_tables_of_a_structure(ladder: pd.DataFrame) -> None:
    """Fewer curves, rows and base models, other losses and priors: value and slopes are right."""
    machine.code.cache_clear()
    compiled_density(laid(ladder), WEAK)
    smaller = ladder[ladder["base_model"] != ladder["base_model"].iloc[0]]
    smaller = smaller.assign(loss=smaller["loss"] * 1.1).iloc[1:]
    check(laid(smaller), WEAK, 9)
    check(laid(ladder), get_priors("zhang2024"), 9)
    assert machine.code.cache_info().misses == 1
    compiled_density(laid(ladder, "power"), WEAK)
    assert machine.code.cache_info().misses == 2  # the control: another structure


def test_code_that_computes_something_else_is_noticed(ladder: pd.DataFrame) -> None:
    layout = laid(ladder)
    model, taken = compiled_density(layout, WEAK), inputs(layout, WEAK)
    assert density._fault(model, layout, WEAK, taken) is None
    other = replace(layout, log_loss=layout.log_loss + 0.01)
    assert "log density is" in str(density._fault(model, other, WEAK, taken))
    right = density.value_and_gradient

    def bent(model: Any, x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = right(model, x)
        return value, 1.5 * gradient

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(density, "value_and_gradient", bent)
        assert "gradient" in str(density._fault(model, layout, WEAK, taken))


def test_numbers_of_another_shape_are_refused(ladder: pd.DataFrame) -> None:
    layout = laid(ladder)
    taken, recording = inputs(layout, WEAK), density.record(layout, WEAK)
    density._numbers(recording, taken)
    short = {**taken.numbers, "given log_u": taken.numbers["given log_u"][1:]}
    with pytest.raises(DensityError, match="'given log_u' has the size"):
        density._numbers(recording, replace(taken, numbers=short))


def test_a_density_that_fails_its_check_is_refused(
    ladder: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(density, "_fault", lambda *unused: "the compiled log density is 1")
    with pytest.raises(DensityError, match="is 1"):
        compiled_density(laid(ladder), WEAK)
