"""The model in PyMC: the same as in NumPy, named, and open to whoever knows PyMC."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import pymc as pm
import pytensor
import pytest
from conftest import SMALL
from scipy import stats
from thinned import THINNED

from tunecast.models import fit, load_fit, pymc_model
from tunecast.models.errors import TunecastError
from tunecast.models.hierarchy.numpy_backends import (
    Simulation,
    geometry_of,
    log_density,
    replay,
    simulate_prior,
)
from tunecast.models.hierarchy.priors import WEAK, get_priors
from tunecast.models.hierarchy.pymc_model import build
from tunecast.models.hierarchy.table import Table, index_runs, spec_of
from tunecast.models.laws import LAWS
from tunecast.models.runs import read_runs

TWO = ("model_size", "pretrain_tokens")


@pytest.fixture(autouse=True)
def _python() -> Iterator[None]:
    """Graphs in Python: compiling each to machine code would take longer than all tests."""
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        yield


def indexed(runs: pd.DataFrame, law: str, factors: tuple[str, ...] = (), **ask: Any) -> Table:
    return index_runs(runs, spec_of(runs, law=law, factors=factors, **ask))


# ------------------------------------------------------------------ the same model as in NumPy


# Graphs as they are: rewriting them takes longer than computing them a few times.
AS_WRITTEN = pytensor.compile.mode.Mode("py", optimizer=None)  # type: ignore[arg-type]


def sampled_as(value: Any) -> str:
    """Name in NumPy of what PyMC samples: without a geometry, scales are sampled as logarithms."""
    name = str(value.name)
    return f"log_{name.removesuffix('_log__')}" if name.endswith("_log__") else name


def agree(table: Table, geometry: bool = True, slopes: bool = False) -> None:
    """All that PyMC computes at prior draws, density included, is what NumPy computes.

    With ``slopes``, density and gradient are finite where PyMC starts.
    """
    ways = geometry_of(table, WEAK) if geometry else None
    found = simulate_prior(table, WEAK, 3, 3, ways)
    model = build(table, WEAK, ways)
    assert {sampled_as(v) for v in model.value_vars} == set(found.draws)
    names = [v.name for v in model.deterministics]
    terms: list[Any] = model.logp(sum=False)
    # Added two by two: PyTensor's Python adds at most 32 at once.
    total = sum(term.sum() for term in terms)
    gradient: Any = pytensor.grad(total, model.value_vars) if slopes else []
    compiled = pytensor.function(
        model.value_vars,
        [total, *model.replace_rvs_by_values(model.deterministics), *gradient],
        mode=AS_WRITTEN,
        on_unused_input="ignore",
    )
    for i in range(3):
        point = {name: value[i] for name, value in found.draws.items()}
        density, *computed = compiled(*[point[sampled_as(v)] for v in model.value_vars])
        for name, value in zip(names, computed, strict=False):
            # D_l and D_c are infinite where beta is near 0.
            np.testing.assert_allclose(value, found.values[name][i], rtol=1e-9, atol=1e-11)
        # Deviations are differences of nearby numbers over scales that may be small.
        assert density == pytest.approx(log_density(table, WEAK, point, ways), rel=1e-8)
        # The control: at another draw it is another.
        other = {name: value[i - 1] for name, value in found.draws.items()}
        assert density != pytest.approx(log_density(table, WEAK, other, ways), rel=1e-8)
    if slopes:
        start = model.initial_point()
        density, *computed = compiled(*[start[v.name] for v in model.value_vars])
        assert np.isfinite(density)
        for variable, slope in zip(model.value_vars, computed[len(names) :], strict=True):
            assert slope.shape == np.shape(start[variable.name])
            assert np.isfinite(slope).all()


@pytest.mark.parametrize("law", LAWS)
def test_pymc_and_numpy_compute_the_same(ladder: pd.DataFrame, law: str) -> None:
    # Between them, these two have every coordinate.
    agree(indexed(ladder, law, TWO), slopes=law in ("additive", "rectified"))


@pytest.mark.parametrize("law", LAWS)
def test_pymc_and_numpy_compute_the_same_without_a_geometry(ladder: pd.DataFrame, law: str) -> None:
    agree(indexed(ladder, law, cell=("task",)), geometry=False)


def test_pymc_and_numpy_agree_on_other_shapes_of_table(
    ladder: pd.DataFrame, zhang: pd.DataFrame
) -> None:
    """Several tasks and families, no grouping, one curve a base model."""
    agree(indexed(zhang, "rectified"))
    agree(indexed(ladder, "multiplicative", TWO[:1], cell=("task",)))
    agree(indexed(ladder[ladder["method"] == "fmt"], "additive", TWO[:1]))


@pytest.mark.parametrize("thin", THINNED)
def test_pymc_and_numpy_agree_where_curves_show_less(ladder: pd.DataFrame, thin: str) -> None:
    runs = THINNED[thin](ladder)
    agree(indexed(runs, "rectified", TWO[:1]), slopes=thin == "one, two and all")
    agree(indexed(runs, "power"), geometry=False)


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("geometry", [True, False], ids=["geometry", "textbook"])
@pytest.mark.parametrize("law", LAWS)
def test_everything_has_its_name_and_its_dims(
    ladder: pd.DataFrame, law: str, geometry: bool
) -> None:
    model = pymc_model(SMALL, law=law, geometry=geometry)
    table = index_runs(ladder, spec_of(ladder, law=law))
    assert {dim: list(labels) for dim, labels in model.coords.items()} == table.coords
    assert [v.name for v in model.observed_RVs] == ["log_loss"]
    named = set(model.named_vars)
    for parameter in table.law.parameters:
        assert parameter.name in named
        own = ("factor", "cell") if parameter.per_factor else ("cell",)
        assert model.named_vars_to_dims[parameter.name] == own
    assert {"noise", "expected_log_loss", "log_relative_loss", "base_model_effect"} <= named
    assert not {p.name for other in LAWS.values() for p in other.parameters} & named - {
        p.name for p in table.law.parameters
    }
    free = {v.name for v in model.free_RVs}
    assert all(name.endswith("_raw") for name in free) == geometry
    unknowns = simulate_prior(table, WEAK, 1, 0, None)
    names = {name if name in unknowns.values else name.removeprefix("log_")
             for name in unknowns.draws}  # fmt: skip
    assert names == ({name.removesuffix("_raw") for name in free} if geometry else free)
    for name, dims in unknowns.dims.items():
        if name != "log_loss":
            assert tuple(model.named_vars_to_dims.get(name) or ()) == dims


def test_options_are_those_of_a_fit(ladder: pd.DataFrame) -> None:
    ladder.loc[0, "status"] = "failed"
    ask: dict[str, Any] = {"factors": ["pretrain_tokens"], "cell": ["method"], "curve": "task"}
    model = pymc_model(ladder, law="additive", **ask)
    assert list(model.coords["factor"]) == ["pretrain_tokens"]
    assert list(model.coords["cell"]) == ["fmt", "lora", "prompt"]
    assert list(model.coords["base_model"]) == ["debian-en-de"]
    assert list(model.coords["run"]) == list(ladder["run_id"][1:])
    mean = {
        name: float(pymc_model(ladder, law="power", priors=name, geometry=False)["log_beta_mean"]
                    .owner.inputs[2].eval())
        for name in ("weak", "zhang2024")
    }  # fmt: skip
    assert mean == {name: pytest.approx(get_priors(name)["log_beta"].location) for name in mean}
    assert mean["weak"] != mean["zhang2024"]


def test_what_is_at_fault_is_said_in_a_sentence(ladder: pd.DataFrame) -> None:
    with pytest.raises(TunecastError, match="unknown law 'cubic'"):
        pymc_model(ladder, law="cubic")
    with pytest.raises(TunecastError, match="1 usable run"):
        pymc_model(ladder.iloc[:1])
    with pytest.raises(TunecastError, match="unknown priors 'strong'"):
        pymc_model(ladder, priors="strong")


# ------------------------------------------------------------------ what PyMC does with it


@dataclass(frozen=True)
class Small:
    """The smallest table there is, in PyMC and in NumPy."""

    runs: pd.DataFrame
    table: Table
    found: Simulation

    def model(self, **options: Any) -> Any:
        return pymc_model(self.runs, law="power", **options)


@pytest.fixture(scope="module")
def small() -> Small:
    runs = read_runs(SMALL, columns=["model_size", "finetune_examples"])
    runs = runs[runs["method"] == "fmt"]
    table = indexed(runs, "power")
    return Small(runs, table, simulate_prior(table, WEAK, 6, 1, geometry_of(table, WEAK)))


def test_its_graph_is_drawn(small: Small) -> None:
    source = pm.model_to_graphviz(small.model(geometry=False)).source
    for name in ("A", "E", "beta", "noise", "log_loss", "base_model_effect"):
        assert f'{name} [label="{name}' in source
    for dim, size in (("curve", 3), ("run", len(small.runs)), ("cell", 1)):
        assert f"{dim} ({size})" in source


@pytest.mark.parametrize("geometry", [True, False], ids=["geometry", "textbook"])
def test_its_prior_is_drawn_from(small: Small, geometry: bool) -> None:
    """Global means are normal around their priors' locations: within 5 standard errors."""
    n = 400
    model = small.model(geometry=geometry)
    names = ["log_loss_ref_mean", "log_beta_mean", "log_loss"]
    drawn = pm.sample_prior_predictive(n, model=model, var_names=names, random_seed=1)
    for name in ("log_loss_ref", "log_beta"):
        prior, values = WEAK[name], np.asarray(drawn["prior"][f"{name}_mean"])[0]
        z = (values - prior.location) / prior.scale
        assert abs(z.mean()) < 5 / np.sqrt(n) and abs(z.std() - 1) < 5 / np.sqrt(2 * n)
        assert abs((1.5 * z).std() - 1) > 5 / np.sqrt(2 * n)  # the control
    losses = drawn["prior_predictive"]["log_loss"]
    assert losses.dims == ("chain", "draw", "run") and losses.shape == (1, n, len(small.runs))
    assert np.isfinite(losses).all()


def test_its_log_likelihood_is_computed_for_draws(small: Small) -> None:
    """Run by run, as leave-one-out needs it, and as by SciPy."""
    draws = {name: value[None] for name, value in small.found.draws.items()}
    model = small.model()
    dims = {name: list(model.named_vars_to_dims.get(name) or ()) for name in draws}
    tree = az.from_dict({"posterior": draws}, dims=dims, coords=small.table.coords)
    pm.compute_log_likelihood(tree, model=model, progressbar=False)
    found = tree["log_likelihood"]["log_loss"]
    assert found.dims == ("chain", "draw", "run")
    assert list(found["run"].values) == list(small.table.run_ids)
    v = small.found.values
    expected = stats.t.logpdf(
        small.table.log_loss,
        v["noise_df"][:, None],
        v["expected_log_loss"],
        v["noise"][:, small.table.run_curve],
    )
    np.testing.assert_allclose(found[0], expected, rtol=1e-9)


def test_it_is_sampled_by_pymc(small: Small) -> None:
    """Draws move, and what PyMC names in them is what a replay makes of the variables."""
    with small.model() as model:
        trace = pm.sample(
            draws=5, tune=5, chains=2, cores=1, random_seed=1, nuts_sampler="pymc",
            nuts={"max_treedepth": 3, "early_max_treedepth": 3}, progressbar=False,
            compute_convergence_checks=False,
        )  # fmt: skip
    posterior = trace["posterior"].to_dataset()
    assert dict(posterior["E"].sizes) == {"chain": 2, "draw": 5, "cell": 1}
    flat = {
        v.name: np.asarray(posterior[v.name]).reshape(10, *posterior[v.name].shape[2:])
        for v in model.free_RVs
    }
    again = replay(small.table, WEAK, flat, small.found.geometry).values
    for name in ("A", "E", "beta", "noise", "expected_log_loss", "log_beta_curve"):
        ours = again[name].reshape(posterior[name].shape)
        np.testing.assert_allclose(posterior[name], ours, rtol=1e-9)
    assert len(np.unique(posterior["E"])) > 5
    assert np.isfinite(trace["sample_stats"]["lp"]).all()


# ------------------------------------------------------------------ a term of one's own


def with_low_floor(model: Any) -> Any:
    """That no cell's irreducible loss is likely to exceed 3 nats."""
    with model:
        pm.Potential("low_floor", pm.logp(pm.HalfNormal.dist(1.5), model["E"]).sum())
    return model


def test_a_term_of_ones_own_is_added_to_the_density(small: Small) -> None:
    plain, changed = small.model(), with_low_floor(small.model())
    assert [v.name for v in changed.potentials] == ["low_floor"]

    def densities(model: Any) -> Callable[[Any], float]:
        compiled = model.compile_logp(sum=False)
        return lambda point: sum(float(np.sum(term)) for term in compiled(point))

    before, after = densities(plain), densities(changed)
    for i in range(3):
        point = {name: value[i] for name, value in small.found.draws.items()}
        term = stats.halfnorm.logpdf(small.found.values["E"][i], scale=1.5).sum()
        assert after(point) - before(point) == pytest.approx(term, abs=1e-7)
        assert abs(term) > 1e-3


def test_a_changed_model_is_fitted(small: Small, tmp_path: Path) -> None:
    """A term that says what E is, is heard; the fit without it says something else."""
    short: dict[str, Any] = {
        "draws": 60, "tune": 150, "chains": 2, "retry": False, "progress": False,
        "allow_unconverged": True, "law": "power",
    }  # fmt: skip
    with small.model() as model:
        floor = pm.Normal("floor", 0.5, 0.02, shape=1)
        pm.Potential("known", pm.logp(pm.Normal.dist(floor, 0.02), model["E"]).sum())
    with pytensor.config.change_flags(mode="NUMBA"):
        found = fit(small.runs, model=model, **short)
    plain = fit(small.runs, **short)
    E, usual = (f.cell_parameters()["debian-en-de", "fmt"]["E"] for f in (found, plain))
    assert E.shape == (120,)
    assert abs(E.mean() - 0.5) < 0.03 and E.std() < 0.05
    assert usual.std() > 0.1
    added = [*plain.posteriors[0].draws, "floor"]
    assert sorted(found.posteriors[0].draws) == sorted(added)
    assert found.forecast(small.runs.head(2)).shape[0] == 2
    assert found.to_datatree()["posterior"]["floor"].dims == ("chain", "draw", "floor_dim_0")
    found.save(tmp_path / "fit.nc")
    again = load_fit(tmp_path / "fit.nc")
    pd.testing.assert_frame_equal(again.forecast(small.runs), found.forecast(small.runs))
    np.testing.assert_array_equal(
        again.posteriors[0].draws["floor"], found.posteriors[0].draws["floor"]
    )


def test_a_model_of_something_else_is_refused(small: Small, ladder: pd.DataFrame) -> None:
    """Before it is sampled: in the form of a textbook, or of other runs."""
    textbook = pymc_model(small.runs, law="power", geometry=False)
    with pytest.raises(TunecastError, match="'base_model_sd_raw' is missing, expected the shape"):
        fit(small.runs, law="power", model=textbook)
    other = pymc_model(ladder, law="power")
    with pytest.raises(TunecastError, match=r"is \(\d+,\), expected the shape \(\d+,\): give what"):
        fit(small.runs, law="power", model=other)


def test_law_auto_takes_no_model(small: Small) -> None:
    with pytest.raises(TunecastError, match="a model of your own has one"):
        fit(small.runs, law="auto", model=small.model())
