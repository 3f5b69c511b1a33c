"""A Bayesian fit without pooling: every curve on its own, the same law, the same sampler.

The rectified law in the coordinates of the hierarchy (level, share, local slope, onset), with the
prior table's global rows as each curve's own prior and no scale learned across curves.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

from tunecast.models.hierarchy import decline, slope_shift
from tunecast.models.laws import get_law
from tunecast.models.priors import WEAK


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
        z = {name: pm.Normal(name, 0, 1, shape=n) for name in ("share", "onset", "noise")}
        share = WEAK["share"].location + WEAK["share"].scale * z["share"]
        onset = WEAK["onset"].location + WEAK["onset"].scale * z["onset"]
        shift = slope_shift(share, onset, pt)
        slope = pm.Normal("slope", WEAK["rate"].location + shift, WEAK["rate"].scale, shape=n)
        start = pd.Series(y).groupby(at).mean().to_numpy()
        level = pm.Normal(
            "level", WEAK["level"].location, WEAK["level"].scale, initval=start, shape=n
        )
        noise = pt.exp(WEAK["noise"].location + WEAK["noise"].scale * z["noise"])
        tail = WEAK["noise_df"]
        df = 2 + pt.exp(tail.location + tail.scale * pm.Normal("df", 0, 1))
        mean = level[at] + decline(
            law, x - centre[at], share[at], (slope - shift)[at], onset[at], pt
        )
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
    share = WEAK["share"].location + WEAK["share"].scale * got["share"][:, where]
    onset = WEAK["onset"].location + WEAK["onset"].scale * got["onset"][:, where]
    rate = got["slope"][:, where] - slope_shift(share, onset, np)
    log_u = np.log(test["finetune_examples"].to_numpy(float)) - centre[where]
    mean = got["level"][:, where] + decline(law, log_u, share, rate, onset, np)
    scale = np.exp(WEAK["noise"].location + WEAK["noise"].scale * got["noise"][:, where])
    df = 2 + np.exp(tail.location + tail.scale * got["df"])[:, None]
    rng = np.random.default_rng(seed)
    return np.exp(mean + scale * rng.standard_t(df, mean.shape))
