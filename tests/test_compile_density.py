"""Machine code for the log density: what it computes, and for whom it serves."""

from __future__ import annotations

import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from nutpie.compile_pymc import CompiledPyMCModel
from packaging.requirements import Requirement
from thinned import THINNED

from tunecast.models.compile import density, llvm
from tunecast.models.compile.density import (
    DensityError,
    compiled_density,
    inputs,
    value_and_gradient,
)
from tunecast.models.hierarchy.numpy_backends import geometry_of, log_density
from tunecast.models.hierarchy.priors import WEAK, Priors, get_priors
from tunecast.models.hierarchy.table import Table, index_runs, spec_of
from tunecast.models.laws import LAWS


def indexed(runs: pd.DataFrame, law: str = "rectified", **ask: Any) -> Table:
    runs = runs.reset_index(drop=True)
    return index_runs(runs, spec_of(runs, law=law, **ask))


def check(table: Table, priors: Priors, seed: int) -> None:
    """Compare value and slopes in every direction with the density in NumPy."""
    model, taken = compiled_density(table, priors), inputs(table, priors)
    geometry = geometry_of(table, priors)
    x = model.initial_point_func(seed)
    value, gradient = value_and_gradient(model, x)
    assert value == pytest.approx(log_density(table, priors, taken.named(x), geometry), rel=1e-11)
    # A central difference of fourth order: some slopes bend within a thousandth.
    h, measured = 1e-5, np.zeros(len(x))
    for k, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
        at = x + k * h * np.eye(len(x))
        values = [log_density(table, priors, taken.named(y), geometry) for y in at]
        measured += weight * np.array(values) / (12 * h)
    scale = 1 + np.abs(gradient).max()
    np.testing.assert_allclose(gradient, measured, rtol=1e-6, atol=1e-8 * scale)


@pytest.mark.parametrize("law", LAWS)
def test_slopes_are_finite_far_out(ladder: pd.DataFrame, law: str) -> None:
    """Where warm-up wanders, the value is finite; a slope that is not would end the trajectory."""
    table = indexed(ladder, law)
    model = compiled_density(table, WEAK)
    rng = np.random.default_rng(2)
    start = model.initial_point_func(0)
    for _ in range(40):
        _, gradient = value_and_gradient(model, start + 3 * rng.standard_normal(len(start)))
        assert np.isfinite(gradient).all()


def test_chains_share_the_code(ladder: pd.DataFrame) -> None:
    table = indexed(ladder)
    model = compiled_density(table, WEAK)
    points = [model.initial_point_func(seed) for seed in range(8)]
    alone = [value_and_gradient(model, x) for x in points]

    def many(k: int) -> bool:
        value, gradient = alone[k]
        again = (value_and_gradient(model, points[k]) for _ in range(300))
        return all(v == value and np.array_equal(g, gradient) for v, g in again)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(many, range(8)))


@pytest.mark.parametrize("law", LAWS)
def test_value_and_slopes_are_those_of_numpy(ladder: pd.DataFrame, law: str) -> None:
    check(indexed(ladder, law), WEAK, 3)


def test_the_same_without_groupings_and_with_a_curve_for_each_base_model(
    ladder: pd.DataFrame,
) -> None:
    one = ladder[(ladder["task"] == ladder["task"].iloc[0]) & (ladder["method"] == "lora")]
    table = indexed(one, "multiplicative", cell=["task"])
    assert table.one_curve_per_base_model and not table.groupings
    check(table, WEAK, 3)


@pytest.mark.parametrize("thin", THINNED)
def test_the_same_where_curves_show_less(ladder: pd.DataFrame, thin: str) -> None:
    check(indexed(THINNED[thin](ladder)), WEAK, 3)


def test_one_code_serves_tables_of_a_structure(ladder: pd.DataFrame) -> None:
    """Fewer curves, rows and base models, other losses and priors: value and slopes are right."""
    compiled_density(indexed(ladder), WEAK)
    compiled = llvm.code.cache_info().misses
    smaller = ladder[ladder["base_model"] != ladder["base_model"].iloc[0]]
    smaller = smaller.assign(loss=smaller["loss"] * 1.1).iloc[1:]
    check(indexed(smaller), WEAK, 9)
    check(indexed(ladder), get_priors("zhang2024"), 9)
    assert llvm.code.cache_info().misses == compiled
    # The control: other structures have other codes, one for each law.
    texts = {density.record(indexed(ladder, law), WEAK).program.text for law in LAWS}
    assert len(texts) == len(LAWS)
    # And one for each set of things that all curves show, some or none; two tables share theirs.
    several = [indexed(thin(ladder)) for thin in THINNED.values()]
    texts = {density.record(table, WEAK).program.text for table in [indexed(ladder), *several]}
    assert len(texts) == len(THINNED)
    # What a recording is kept by tells all of them apart.
    tables = [
        indexed(ladder),
        *several,
        *(indexed(thin(ladder), "power") for thin in THINNED.values()),
    ]
    kept = {density._structure(t, inputs(t, WEAK)): density.record(t, WEAK) for t in tables}
    assert all(
        kept[density._structure(t, inputs(t, WEAK))].program.text
        == density.record(t, WEAK).program.text
        for t in tables
    )


def test_code_that_computes_something_else_is_noticed(ladder: pd.DataFrame) -> None:
    table = indexed(ladder)
    model, taken = compiled_density(table, WEAK), inputs(table, WEAK)
    geometry = geometry_of(table, WEAK)
    assert density._fault(model, table, WEAK, geometry, taken) is None
    other = replace(table, log_loss=table.log_loss + 0.01)
    assert "log density is" in str(density._fault(model, other, WEAK, geometry, taken))
    right = density.value_and_gradient

    def bent(model: Any, x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = right(model, x)
        return value, 1.5 * gradient

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(density, "value_and_gradient", bent)
        assert "gradient" in str(density._fault(model, table, WEAK, geometry, taken))


def test_numbers_of_another_shape_are_refused(ladder: pd.DataFrame) -> None:
    table = indexed(ladder)
    taken, recording = inputs(table, WEAK), density.record(table, WEAK)
    density._numbers(recording, taken)
    short = {**taken.numbers, "table.log_u": taken.numbers["table.log_u"][1:]}
    with pytest.raises(DensityError, match=r"'table\.\w+' has the size"):
        density._numbers(recording, replace(taken, numbers=short))


def test_a_density_that_fails_its_check_is_refused(
    ladder: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(density, "_fault", lambda *unused: "the compiled log density is 1")
    with pytest.raises(DensityError, match="is 1"):
        compiled_density(indexed(ladder), WEAK)


# ------------------------------------------------------------------ nutpie

# Its fields in the version that density.py was written for: those that must be filled, and those
# that have a default.
REQUIRED = {
    "dims", "compiled_logp_func", "compiled_expand_func", "initial_point_func", "shared_data",
    "shared_var_keys", "user_data", "n_expanded", "shape_info", "logp_func", "expand_func",
    "_n_dim", "_shapes", "_coords",
}  # fmt: skip
OPTIONAL = {"reparameterized_names", "_transform_adapt_args"}


def test_nutpies_model_is_the_one_that_is_filled(
    ladder: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A canary: compile/density.py fills a class that nutpie does not promise to keep."""
    look = (
        f"nutpie {version('nutpie')} has another CompiledPyMCModel than 0.16.11: compare "
        "nutpie/compile_pymc.py and its _make_model with compiled_density in "
        "models/compile/density.py, then move the range in pyproject.toml"
    )
    has = {f.name: f.default is MISSING and f.default_factory is MISSING
           for f in fields(CompiledPyMCModel)}  # fmt: skip
    assert {name for name, required in has.items() if required} == REQUIRED, look
    assert {name for name, required in has.items() if not required} == OPTIONAL, look
    filled: list[set[str]] = []

    def recorded(**given: Any) -> Any:
        filled.append(set(given))
        return CompiledPyMCModel(**given)

    monkeypatch.setattr(density, "CompiledPyMCModel", recorded)
    compiled_density(indexed(ladder), WEAK)
    assert filled == [REQUIRED], look


def test_nutpie_is_of_a_version_that_is_allowed() -> None:
    """And the range ends before the next minor one, which may change its classes."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    every = map(Requirement, project["dependencies"])
    (asked,) = (requirement for requirement in every if requirement.name == "nutpie")
    found = version("nutpie")
    assert asked.specifier.contains(found), f"nutpie {found} is installed, allowed is '{asked}'"
    assert not asked.specifier.contains("0.17.0") and not asked.specifier.contains("0.16.10")
