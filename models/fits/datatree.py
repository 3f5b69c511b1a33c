"""A fit as a DataTree with ArviZ's groups, for `arviz` and for the file.

One law stands at the top of the tree; several have a branch each, named like the law. The groups:

* ``posterior``: A, E, alpha, beta (D_l, ... where the law has them) of each cell in the papers'
  units, gamma and delta, the effects and scales of the hierarchy, ``noise``: every unknown, and
  what follows from them, by names and labels;
* ``unconstrained_posterior``: the sampled variables in their own coordinates, from which a fit is
  loaded exactly;
* ``sample_stats``, ``log_likelihood``, ``posterior_predictive``, ``prior``, ``prior_predictive``,
  ``observed_data`` and ``constant_data``. What is observed is ``log_loss``, over dim ``run``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tunecast.models.hierarchy.backend import Backend, raw
from tunecast.models.hierarchy.numpy_backends import log_density_of, simulate_prior
from tunecast.models.hierarchy.unsampled import complete
from tunecast.models.inference.posterior import Posterior
from tunecast.models.laws.positive import NumPy

PRIOR_DRAWS = 500
OBSERVED = "log_loss"
LARGEST = 1e70  # of an amplitude or a data size in raw units


def datatree_of(posteriors: Sequence[Posterior], runs: pd.DataFrame, seed: int) -> xr.DataTree:
    """Return the groups of one law, or a branch of them for each of several.

    Parameters
    ----------
    posteriors : sequence of Posterior
        One for each law in use.
    runs : DataFrame
        The rows that were fitted.
    seed : int
        Of what is drawn: the posterior predictive and the prior.
    """
    trees = {p.law: _groups(p, runs, seed) for p in posteriors}
    if len(trees) == 1:
        return xr.DataTree.from_dict(next(iter(trees.values())))
    return xr.DataTree.from_dict(
        {f"{law}/{name}": group for law, groups in trees.items() for name, group in groups.items()}
    )


def _groups(posterior: Posterior, runs: pd.DataFrame, seed: int) -> dict[str, xr.Dataset]:
    table, values, dims = posterior.table, posterior.values, posterior.replayed.dims
    labels = table.coords
    chains = {"chain": np.arange(posterior.chains[0]), "draw": np.arange(posterior.chains[1])}
    mean, scale = values["expected_log_loss"], values["scale"]
    df = values["noise_df"][:, None]
    rng = np.random.default_rng([seed, 4])
    replicated = mean + scale * rng.standard_t(np.broadcast_to(df, mean.shape))
    log_likelihood = log_density_of(table.log_loss, df, mean, scale, NumPy)

    def of_runs(array: np.ndarray, chains: Mapping[str, np.ndarray] = chains) -> xr.Dataset:
        return _labelled({OBSERVED: array}, {OBSERVED: ("run",)}, labels, chains, np.float32)

    simulated = simulate_prior(table, posterior.priors, PRIOR_DRAWS, seed, None)
    as_sampled = dict(simulated.dims)
    complete(simulated)
    one = {"chain": np.arange(1), "draw": np.arange(PRIOR_DRAWS)}
    sampled = {name: v.reshape(-1, *v.shape[2:]) for name, v in posterior.draws.items()}
    known = {raw(name): over for name, over in as_sampled.items()} | dict(dims)
    # Variables that a user added to the model have ArviZ's names of nameless dims.
    added = {k: v for k, v in sampled.items() if k not in known}
    known |= {k: tuple(f"{k}_dim_{i}" for i in range(v.ndim - 1)) for k, v in added.items()}
    run = {"run": labels["run"]}
    return {
        "posterior": _labelled(_unknowns(posterior.replayed) | added, known, labels, chains),
        "unconstrained_posterior": _labelled(sampled, known, labels, chains),
        "sample_stats": xr.Dataset(
            {k: (("chain", "draw"), v) for k, v in posterior.statistics.items()}, chains
        ),
        "log_likelihood": of_runs(log_likelihood),
        "posterior_predictive": of_runs(replicated),
        "prior": _labelled(_unknowns(simulated), simulated.dims, labels, one),
        "prior_predictive": of_runs(simulated.values[OBSERVED], one),
        "observed_data": xr.Dataset({OBSERVED: ("run", table.log_loss)}, run),
        "constant_data": xr.Dataset(
            {
                name: ("run", runs[name].to_numpy(float))
                for name in (*table.factors, table.spec.data)
            },
            run,
        ),
    }


def _unknowns(found: Backend) -> dict[str, np.ndarray]:
    """Return everything but what there is one of for each run.

    Amplitudes and data sizes are bounded: where an exponent is near 0 or huge, draws of them in raw
    units are beyond any number, or the powers of them in summaries are.
    """
    amplitudes = {p.name for p in found.table.law.parameters if p.scales_with}
    return {
        k: np.clip(v, 1 / LARGEST, LARGEST) if k in amplitudes else v
        for k, v in found.values.items()
        if "run" not in found.dims[k]
    }


def _labelled(
    values: Mapping[str, np.ndarray],
    dims: Mapping[str, tuple[str, ...]],
    labels: Mapping[str, Sequence[str]],
    chains: Mapping[str, np.ndarray],
    kind: Any = np.float64,
) -> xr.Dataset:
    """Return arrays of shape (draws of all chains, ...) with their dims and labels."""
    shape = tuple(len(v) for v in chains.values())
    data = {
        name: (("chain", "draw", *dims[name]), v.reshape(*shape, *v.shape[1:]).astype(kind))
        for name, v in values.items()
    }
    used = {dim for name in values for dim in dims[name]}
    coords = {dim: np.array(labels[dim], dtype=object) for dim in labels if dim in used}
    return xr.Dataset(data, {**chains, **coords})


def dataset_of_frame(frame: pd.DataFrame) -> xr.Dataset:
    """Return a run table as a dataset over dim ``row``, text and numbers as they are."""
    columns = {}
    for name in frame:
        values = frame[name]
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            # Whole numbers stay whole: as a label, 7 must not come back as 7.0.
            whole = pd.api.types.is_integer_dtype(values) and not values.hasnans
            columns[str(name)] = ("row", values.to_numpy(np.int64 if whole else float))
        else:
            text = values.astype(object).where(values.notna(), "").astype(str)
            columns[str(name)] = ("row", text.to_numpy(object))
    return xr.Dataset(columns)
