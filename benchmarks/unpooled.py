"""A Bayesian fit without pooling: every curve on its own, the same law, the same sampler.

The rectified law by the quantities of the hierarchy, with the prior table's global rows as each
curve's own prior and no scale learned across curves.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

from tunecast.models.hierarchy.priors import WEAK
from tunecast.models.laws import get_law
from tunecast.models.laws.law import log_relative_loss
from tunecast.models.laws.positive import NumPy

WEAKLY_IDENTIFIED = ("logit_floor", "logit_data_share")


def unpooled(
    train: pd.DataFrame, test: pd.DataFrame, *, seed: int, draws: int = 1000
) -> np.ndarray:
    """Return draws of a new run's loss, shape (draws, len(test)).

    Raises
    ------
    ValueError
        When a test row's curve has no training rows: without pooling nothing is known of it.
    """
    import nutpie
    import pymc as pm
    import pytensor.tensor as pt

    law = get_law("rectified")
    key = [c for c in ("task", "method", "base_model") if c in train]
    names = train[key].astype(str).agg("\x1f".join, axis=1)
    at, curves = pd.factorize(names, sort=True)
    x = np.log(train["finetune_examples"].to_numpy(float))
    n = len(curves)
    low = pd.Series(x).groupby(at).min().to_numpy()
    centre = (low + pd.Series(x).groupby(at).max().to_numpy()) / 2
    y = np.log(train["loss"].to_numpy(float))
    where = pd.Index(curves).get_indexer(test[key].astype(str).agg("\x1f".join, axis=1))
    if (where < 0).any():
        raise ValueError(f"{int((where < 0).sum())} rows belong to curves without training rows")

    with pm.Model() as model:
        z = {name: pm.Normal(name, 0, 1, shape=n) for name in (*WEAKLY_IDENTIFIED, "noise")}
        q = {k: WEAK[k].location + WEAK[k].scale * z[k] for k in WEAKLY_IDENTIFIED}
        shift = law.log_slope(q, pt)
        prior = WEAK["log_beta"]
        slope = pm.Normal("log_slope", prior.location + shift, prior.scale, shape=n)
        q["log_beta"] = slope - shift
        start = pd.Series(y).groupby(at).mean().to_numpy()
        prior = WEAK["log_loss_ref"]
        level = pm.Normal("log_loss_ref", prior.location, prior.scale, initval=start, shape=n)
        noise = pt.exp(WEAK["noise"].location + WEAK["noise"].scale * z["noise"])
        tail = WEAK["noise_df"]
        df = 2 + pt.exp(tail.location + tail.scale * pm.Normal("df", 0, 1))
        mean = level[at] + log_relative_loss(law, x - centre[at], q, pt, at)
        pm.StudentT("y", nu=df, mu=mean, sigma=noise[at], observed=y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = nutpie.compile_pymc_model(model)
        trace = nutpie.sample(
            compiled, draws=draws, tune=draws, chains=4, seed=seed, progress_bar=False,
            target_accept=0.9,
        )  # fmt: skip
    posterior = trace["posterior"].to_dataset()
    got = {
        str(k): np.asarray(v).reshape(-1, *v.shape[2:])[::4] for k, v in posterior.data_vars.items()
    }
    q = {k: WEAK[k].location + WEAK[k].scale * got[k][:, where] for k in WEAKLY_IDENTIFIED}
    q["log_beta"] = got["log_slope"][:, where] - law.log_slope(q, NumPy)
    log_u = np.log(test["finetune_examples"].to_numpy(float)) - centre[where]
    mean = got["log_loss_ref"][:, where] + log_relative_loss(law, log_u, q, NumPy)
    scale = np.exp(WEAK["noise"].location + WEAK["noise"].scale * got["noise"][:, where])
    df = 2 + np.exp(tail.location + tail.scale * got["df"])[:, None]
    rng = np.random.default_rng(seed)
    return np.exp(mean + scale * rng.standard_t(df, mean.shape))
