"""A fit's file is a DataTree of ArviZ's groups, and ArviZ works on it as it is."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import SMALL
from scipy.stats import binom, norm
from scipy.stats import t as student
from thinned import THINNED

from tunecast.models import load_fit, pymc_model
from tunecast.models.fits.datatree import LARGEST, PRIOR_DRAWS
from tunecast.models.fits.fit import Fit, fit
from tunecast.models.hierarchy.drift import basis
from tunecast.models.hierarchy.priors import WEAK
from tunecast.models.inference.sampling import STATISTICS
from tunecast.models.laws import LAWS

type MakeFit = Callable[..., Fit]
type Tree = Any  # of xarray, by whose types a part of a tree may be a group or an array

GROUPS = {
    "posterior", "unconstrained_posterior", "sample_stats", "log_likelihood",
    "posterior_predictive", "prior", "prior_predictive", "observed_data", "constant_data", "runs",
}  # fmt: skip

# 600 draws of runs that weigh a lot each: what ArviZ warns of is true of this fit.
PARETO = pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")


@pytest.fixture(scope="module")
def tree(sampled_file: Path) -> Iterator[Tree]:
    with az.from_netcdf(sampled_file) as opened:
        yield opened.load()


@pytest.fixture(scope="module")
def power() -> Fit:
    return fit(
        SMALL, law="power", draws=300, tune=400, chains=2, seed=3, retry=False, progress=False,
        allow_unconverged=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def power_tree(power: Fit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    path = tmp_path_factory.mktemp("power") / "fit.nc"
    power.save(path)
    with az.from_netcdf(path) as opened:
        yield opened.load()


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


# ------------------------------------------------------------------ what is in it


@pytest.mark.parametrize("thin", ["a run each", "one and all", "one and all, a curve each"])
def test_curves_of_one_run_have_their_deviations_in_it(
    ladder: pd.DataFrame, believed: MakeFit, tmp_path: Path, thin: str
) -> None:
    """In posterior and prior, by the names of all; sampled are those of the others alone."""
    made = believed(THINNED[thin](ladder), law="power", size=30)
    made.save(tmp_path / "fit.nc")
    with az.from_netcdf(tmp_path / "fit.nc") as opened:
        tree: Tree = opened.load()
    (found,) = made.posteriors
    labels = found.table.coords
    for name, dim in (("base_model_effect", "base_model"), ("log_loss_ref_curve", "curve")):
        for group in ("posterior", "prior"):
            held = tree[group][name]
            assert held.dims == ("chain", "draw", dim)
            assert list(held[dim].values) == labels[dim]
            assert (np.abs(held.values).min(axis=1) > 0).all()
        np.testing.assert_array_equal(tree["posterior"][name].values[0], found.values[name])
    sampled = tree["unconstrained_posterior"]
    for name in ("base_model_effect_raw", "log_loss_ref_curve_raw"):
        assert (name in sampled) == (name in found.draws)
    assert {"repeated_curve", "repeated_base_model"} & set(sampled.dims) or thin == "a run each"
    again = load_fit(tmp_path / "fit.nc")
    np.testing.assert_array_equal(again.draws(ladder).expected, made.draws(ladder).expected)


def test_groups_and_dimensions_are_labelled(tree: Tree, sampled: Fit, ladder: pd.DataFrame) -> None:
    assert set(tree.children) == GROUPS
    posterior = tree["posterior"]
    assert dict(posterior.sizes) == {
        "chain": 2, "draw": 300, "cell": 3, "factor": 1, "method": 3, "task": 1, "base_model": 3,
        "curve": 9, "drift_term": 2,
    }  # fmt: skip
    assert list(posterior["method"].values) == ["fmt", "lora", "prompt"]
    assert list(posterior["factor"].values) == ["model_size"]
    assert posterior["cell"].values[1] == "debian-en-de / lora"
    assert posterior["curve"].values[0] == "debian-en-de / fmt / ladder-0.1m"
    for name, dims in {
        "A": ("cell",), "E": ("cell",), "beta": ("cell",), "D_l": ("cell",),
        "alpha": ("factor", "cell"), "gamma": ("factor", "cell"),
        "base_model_effect": ("base_model",), "noise": ("curve",), "noise_df": (),
        "log_beta_method": ("method",), "log_beta_method_sd": (), "log_noise_task": ("task",),
        "log_loss_ref_curve": ("curve",), "drift_task": ("drift_term", "task"),
        "drift_curve": ("drift_term", "curve"), "drift_curve_sd": (),
    }.items():  # fmt: skip
        assert posterior[name].dims == ("chain", "draw", *dims), name
    for group in ("log_likelihood", "posterior_predictive", "observed_data", "constant_data"):
        assert list(tree[group]["run"].values) == list(ladder["run_id"])
    assert not [v for v in posterior.data_vars.values() if "run" in v.dims]
    assert set(tree["constant_data"].data_vars) == {"model_size", "finetune_examples"}
    np.testing.assert_allclose(tree["observed_data"]["log_loss"], np.log(ladder["loss"]))
    np.testing.assert_array_equal(
        tree["constant_data"]["finetune_examples"], ladder["finetune_examples"]
    )
    assert set(tree["sample_stats"].data_vars) == set(STATISTICS)
    assert tree["sample_stats"]["diverging"].dtype == bool


def test_names_and_labels_are_those_of_the_pymc_model(tree: Tree, sampled: Fit) -> None:
    model = pymc_model(sampled.runs)
    free = {variable.name for variable in model.free_RVs}
    assert set(tree["unconstrained_posterior"].data_vars) == free
    named = {variable.name for variable in model.deterministics}
    per_run = {"expected_log_loss", "log_relative_loss", "drift", "scale"}
    assert set(tree["posterior"].data_vars) == named - per_run
    for name, variable in tree["posterior"].data_vars.items():
        assert variable.dims[2:] == (model.named_vars_to_dims.get(str(name)) or ()), name
    for dim, labels in model.coords.items():
        if dim in tree["posterior"].coords:
            assert list(tree["posterior"][dim].values) == list(labels)


def test_the_posterior_is_the_replay_chain_by_chain(tree: Tree, sampled: Fit) -> None:
    (own,) = sampled.posteriors
    for name, variable in tree["posterior"].data_vars.items():
        flat = own.values[str(name)]
        if name in ("A", "D_l"):  # in raw units a draw may be beyond any bound
            flat = np.clip(flat, 1 / LARGEST, LARGEST)
        np.testing.assert_array_equal(variable, flat.reshape(2, 300, *flat.shape[1:]))
    for name, variable in tree["unconstrained_posterior"].data_vars.items():
        np.testing.assert_array_equal(variable, own.draws[str(name)])


@pytest.mark.parametrize("law", LAWS)
def test_amplitudes_are_bounded_and_nothing_else_differs_from_the_replay(
    ladder: pd.DataFrame, believed: MakeFit, law: str
) -> None:
    """Draws of the prior, which has exponents so near 0 that data sizes are beyond any number."""
    made = believed(ladder, law=law, size=2000)
    (own,) = made.posteriors
    group: Tree = made.to_datatree()["posterior"]
    raw = {p.name for p in LAWS[law].parameters if p.scales_with}
    assert "A" in raw and not raw & {"E", "alpha", "beta", "f"}
    beyond = 0
    for name, variable in group.data_vars.items():
        replayed, told = own.values[str(name)], np.asarray(variable)[0]
        assert np.isfinite(told).all()
        if name in raw:
            assert (told > 0).all() and told.max() <= LARGEST and told.min() >= 1 / LARGEST
            inside = (replayed < LARGEST) & (replayed > 1 / LARGEST)
            beyond += int((~inside).sum())
            np.testing.assert_array_equal(told[inside], replayed[inside])
            np.testing.assert_array_equal(told[replayed > LARGEST], LARGEST)
        else:
            np.testing.assert_array_equal(told, replayed)
    assert beyond > 0 or law in ("power", "multiplicative")
    # So that what ArviZ makes of them are numbers; warnings are errors here.
    table = az.summary(group, var_names=sorted(raw), kind="stats", round_to="none")
    assert np.isfinite(table.to_numpy(float)).all()


@pytest.mark.parametrize("law", LAWS)
def test_every_law_has_its_parameters(ladder: pd.DataFrame, believed: MakeFit, law: str) -> None:
    tree: Tree = believed(ladder, law=law, size=20).to_datatree()
    assert {p.name for p in LAWS[law].parameters} <= set(tree["posterior"].data_vars)
    assert set(tree.children) == GROUPS - {"runs"}  # which the file adds


# ------------------------------------------------------------------ what it says


def test_log_likelihood_is_that_of_a_hand_computation(
    power_tree: Tree, ladder: pd.DataFrame
) -> None:
    """From the group ``posterior`` alone, by label, with the power law as it is written.

    Controls: normal noise of the same scale, and runs that do not drift, are other likelihoods.
    """
    posterior = power_tree["posterior"]
    curve: Any = xr.DataArray(
        ladder["task"] + " / " + ladder["method"] + " / " + ladder["base_model"], dims="run"
    )
    logit, log_loss, log_beta = (
        posterior[f"{name}_curve"].sel(curve=curve)
        for name in ("logit_floor", "log_loss_ref", "log_beta")
    )
    floor, beta = 1 / (1 + np.exp(-logit)), np.exp(log_beta)
    sizes = ladder.groupby("method")["finetune_examples"]
    middle = np.sqrt(sizes.transform("min") * sizes.transform("max"))
    u = xr.DataArray(ladder["finetune_examples"] / middle, dims="run")
    straight: Any = log_loss + np.log((1 - floor) * u**-beta + floor)
    mean = straight + _drift(posterior, ladder, curve)
    df, scale = posterior["noise_df"].values[..., None], posterior["noise"].sel(curve=curve)
    by_hand = student.logpdf(np.log(ladder["loss"].to_numpy()), df, mean.values, scale.values)
    told = power_tree["log_likelihood"]["log_loss"]
    assert told.dims == ("chain", "draw", "run")
    np.testing.assert_allclose(told, by_hand, rtol=1e-5, atol=1e-5)
    normal = norm.logpdf(np.log(ladder["loss"].to_numpy()), mean.values, scale.values)
    assert np.abs(normal - told.values).mean() > 0.05
    still = student.logpdf(np.log(ladder["loss"].to_numpy()), df, straight.values, scale.values)
    assert np.abs(still - told.values).mean() > 0.05


def _drift(posterior: Tree, runs: pd.DataFrame, curve: xr.DataArray) -> Any:
    """What the coefficients of each run's task and curve add up to, over the ranges of those."""
    at = np.log2(runs["finetune_examples"])
    total: Any = 0.0
    for kind, whose in (("task", xr.DataArray(runs["task"], dims="run")), ("curve", curve)):
        of_each = at.groupby(whose.values)
        moved = basis(at.to_numpy(), *(of_each.transform(end).to_numpy() for end in ("min", "max")))
        coefficients = posterior[f"drift_{kind}"].sel({kind: whose})
        total = total + (coefficients * xr.DataArray(moved, dims=("drift_term", "run"))).sum(
            "drift_term"
        )
    return total


def test_replicated_runs_are_draws_of_the_likelihood(tree: Tree, sampled: Fit) -> None:
    """Each through its own distribution is uniform: moments, and with the next run's they fail."""
    (own,) = sampled.posteriors
    drawn = tree["posterior_predictive"]["log_loss"].values.reshape(600, -1)
    mean, df = own.values["expected_log_loss"], own.values["noise_df"][:, None]
    scale = own.values["scale"]
    n = drawn.size

    def uniform(centre: np.ndarray, width: np.ndarray) -> bool:
        u = np.asarray(student.cdf((drawn - centre) / width, df))
        off = abs(u.mean() - 0.5) * np.sqrt(12 * n), abs(u.var() * 12 - 1) * np.sqrt(n / 0.8)
        return bool(max(off) < 5)

    assert uniform(mean, scale)
    assert not uniform(mean, 1.1 * scale)
    assert not uniform(np.roll(mean, 1, axis=1), scale)
    # A draw belongs to its draw of the parameters.
    assert not uniform(np.roll(mean, 1, axis=0), scale)


def test_the_prior_is_the_prior(tree: Tree) -> None:
    """Moments of what it is made of, and one that follows; the posterior's are others."""
    prior = tree["prior"]
    n = PRIOR_DRAWS
    assert dict(prior.sizes)["draw"] == n and dict(prior.sizes)["chain"] == 1
    row, noise, loss = WEAK["log_beta"], WEAK["noise"], WEAK["log_loss_ref"]

    def standard(values: Any) -> bool:
        z = np.asarray(values).reshape(-1)
        return bool(
            abs(z.mean()) < 5 / np.sqrt(len(z)) and abs(z.std() - 1) < 5 / np.sqrt(2 * len(z))
        )

    def checks(group: Tree) -> list[bool]:
        sd = group["log_beta_method_sd"]
        return [
            standard((group["log_beta_mean"] - row.location) / row.scale),
            standard((np.log(sd) - row.log_effect) / 0.5),
            standard((group["log_beta_method"] / sd).isel(method=0)),
            standard((group["log_noise"] - noise.location) / noise.scale),
            standard((group["log_loss_ref_mean"] - loss.location) / loss.scale),
        ]

    assert all(checks(prior))
    assert sum(checks(tree["posterior"])) <= 2
    # The published parameters follow from the same draws.
    np.testing.assert_allclose(prior["beta"], np.exp(prior["log_beta"]), rtol=1e-12)
    effect = prior["base_model_effect"] / prior["base_model_sd"]
    low, high = binom.interval(1 - 1e-4, effect.size, 2 * student.cdf(1, 4) - 1)
    assert low <= (np.abs(effect) < 1).sum() <= high


def test_several_laws_have_a_branch_each(sampled: Fit, power: Fit) -> None:
    """As each would stand alone, whatever its weight."""
    both = (replace(sampled.posteriors[0], weight=0.7), replace(power.posteriors[0], weight=0.3))
    tree: Tree = replace(sampled, posteriors=both).to_datatree()
    assert set(tree.children) == {"rectified", "power"}
    for own in (sampled, power):
        branch: Tree = tree[own.spec.law]
        alone: Tree = own.to_datatree()
        assert set(branch.children) == set(alone.children)
        for name, group in alone.children.items():
            xr.testing.assert_identical(branch[name].to_dataset(), group.to_dataset())
    assert "D_l" in tree["rectified/posterior"] and "D_l" not in tree["power/posterior"]


# ------------------------------------------------------------------ what ArviZ makes of it


def test_arviz_summarises_the_papers_parameters(tree: Tree, sampled: Fit) -> None:
    names = ["A", "E", "alpha", "beta"]
    table = az.summary(tree, var_names=names, round_to="none")
    assert len(table) == 12
    ours = sampled.summary().set_index(["method", "parameter"])
    (own,) = sampled.posteriors
    for k, (_, method) in enumerate(own.table.cells):
        row = table.loc[f"beta[debian-en-de / {method}]"]
        assert row["mean"] == pytest.approx(own.values["beta"][:, k].mean(), rel=1e-12)
        q05, q95 = (ours.loc[(method, "beta"), q] for q in ("q05", "q95"))
        assert q05 < row["mean"] < q95
    assert f"alpha[model_size, {own.table.coords['cell'][0]}]" in table.index
    # The fit's diagnostics are those of the variables that were sampled.
    sampled_variables = tree["unconstrained_posterior"].to_dataset()
    whole = az.summary(sampled_variables, kind="diagnostics", round_to="none")
    assert whole["r_hat"].max() == pytest.approx(sampled.diagnostics.rhat_max, rel=1e-9)
    assert whole["ess_bulk"].min() == pytest.approx(sampled.diagnostics.ess_bulk_min, rel=1e-9)


def test_arviz_reads_the_samplers_statistics(tree: Tree, sampled: Fit) -> None:
    energy = az.bfmi(tree)["energy"].to_numpy()
    assert energy.shape == (2,)
    assert energy.min() == pytest.approx(sampled.diagnostics.bfmi_min, rel=1e-9)


@PARETO
def test_arviz_compares_laws(tree: Tree, power_tree: Tree) -> None:
    """Leave-one-out scores on log loss: sums over the 49 runs, close to the log likelihood's."""
    each = {"rectified": az.loo(tree), "power": az.loo(power_tree)}
    for name, of in (("rectified", tree), ("power", power_tree)):
        found = each[name]
        assert found.n_data_points == 49 and found.n_samples == 600
        log_likelihood = of["log_likelihood"]["log_loss"].values.reshape(600, -1)
        inside = np.log(np.exp(log_likelihood.astype(float)).mean(axis=0)).sum()
        assert 0 < inside - found.elpd < 60  # what leaving a run out costs: some for each unknown
    table = az.compare({"rectified": tree, "power": power_tree})
    assert set(table.index) == {"rectified", "power"}
    for name, found in each.items():
        assert table.loc[name, "elpd"] == pytest.approx(
            found.elpd, rel=0.03
        )  # printed to two digits
    assert table["weight"].sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("plot", "options"),
    [
        ("plot_forest", {"var_names": ["A", "E", "alpha", "beta"]}),
        ("plot_trace_dist", {"var_names": ["beta"]}),
        ("plot_rank", {"var_names": ["beta"]}),
        ("plot_pair", {"var_names": ["E", "beta"]}),
        ("plot_prior_posterior", {"var_names": ["log_beta"]}),
        ("plot_energy", {}),
        ("plot_ppc_dist", {}),
        ("plot_ppc_interval", {}),
        ("plot_ppc_pit", {}),
        ("plot_loo_pit", {}),
    ],
)
@PARETO
def test_arviz_draws_it(tree: Tree, plot: str, options: dict[str, list[str]]) -> None:
    shown = getattr(az, plot)(tree, backend="matplotlib", **options)
    figure = shown.viz["figure"].item()
    assert sum(bool(ax.lines or ax.collections) for ax in figure.axes) >= 1
