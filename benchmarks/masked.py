"""A fit of any part of a table by one compiled model: rows that were not bought weigh nothing.

Compiling a model takes longer than a short chain. So the model is compiled once for the layout of a
whole pool, and a weight of 0 or 1 for each row is data. Against `tunecast.models.fit` of the bought
rows alone two things differ: the coordinates' reference points lie in the middle of the pool, and
so do the priors that are stated there. Ranges, which say where slope drift begins, are those of the
bought rows.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from tunecast.models.fits import Fit, Member
from tunecast.models.hierarchy import believe, dim_sizes
from tunecast.models.inference import question_of, read_trace
from tunecast.models.layout import Layout, lay_out
from tunecast.models.priors import WEAK, PriorTable


@dataclass(frozen=True)
class Masked:
    """A pool's model, ready to sample."""

    model: Any
    layout: Layout
    priors: PriorTable
    pool: pd.DataFrame

    def fit(
        self,
        losses: np.ndarray,
        bought: np.ndarray,
        *,
        draws: int,
        tune: int,
        chains: int,
        seed: int,
    ) -> Fit:
        """Return a fit of the bought rows; ``losses`` of others are not looked at."""
        import nutpie

        assert bought.dtype == bool
        # Whatever stands in the rows not bought, it must not matter.
        loss = np.where(bought, losses, np.exp(self.layout.log_loss))
        model = self.model.with_data(observed_log_loss=np.log(loss), bought=bought.astype(float))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trace = nutpie.sample(
                model, draws=draws, tune=tune, chains=chains, seed=seed, target_accept=0.9,
                progress_bar=False, cores=1,
            )  # fmt: skip
        values, diagnostics = read_trace(trace)
        posterior = {k: v.reshape(-1, *v.shape[2:]) for k, v in values.items()}
        layout = _ranges_of(self.layout.with_losses(loss), bought)
        runs = self.pool[bought].assign(loss=losses[bought]).reset_index(drop=True)
        question = layout.question
        info = {
            "seed": seed, "simulated": False, "law": question.law, "data": question.data,
            "cell": list(question.cell), "curve": question.curve,
            "factors": list(question.factors),
        }  # fmt: skip
        return Fit((Member(layout, self.priors, posterior, 1.0),), runs, info, diagnostics)


def _ranges_of(layout: Layout, bought: np.ndarray) -> Layout:
    """Return the layout with the data ranges of the bought rows, where a curve or cell has any."""
    at = layout.row_curve[bought]
    d = (layout.log_u / np.log(2) + layout.log2_d_ref[layout.curve_cell[layout.row_curve]])[bought]
    found = {}
    for kind, index in (("curve", at), ("cell", layout.curve_cell[at])):
        low, high = getattr(layout, f"{kind}_low").copy(), getattr(layout, f"{kind}_high").copy()
        # A curve without a run has no range to be inside of: drift starts at its cell's, or at
        # that of all that was bought.
        low[:], high[:] = d.min(), d.max()
        if kind == "curve":
            for c, k in enumerate(layout.curve_cell):
                of_cell = d[layout.curve_cell[at] == k]
                if len(of_cell):
                    low[c], high[c] = of_cell.min(), of_cell.max()
        for i in np.unique(index):
            low[i], high[i] = d[index == i].min(), d[index == i].max()
        found |= {f"{kind}_low": low, f"{kind}_high": high}
    return replace(layout, **found)


def masked(pool: pd.DataFrame, *, law: str, cell: tuple[str, ...], **ask: Any) -> Masked:
    """Return the model of a pool; its losses only place the sampler's starting point."""
    import nutpie
    import pymc as pm
    import pytensor.tensor as pt

    layout = lay_out(pool, question_of(pool, law=law, cell=cell, **ask))
    # Half-way coordinates for slopes, whatever will be bought: a curve without runs that is sampled
    # as if its runs determined it costs long trajectories. The model is the same.
    steep = np.maximum(-layout.slope, 1e-3)
    layout = replace(layout, slope=-steep, slope_error=WEAK["rate"].scatter * steep)
    coords = dim_sizes(layout) | {"row": np.arange(len(layout.row_curve)).tolist()}
    with pm.Model(coords=coords) as model:

        def draw(name: str, location: Any, scale: Any, dims: tuple[str, ...], df: Any) -> Any:
            if df is None:
                return pm.Normal(name, location, scale, dims=dims)
            return pm.StudentT(name, nu=df, mu=location, sigma=scale, dims=dims)

        belief = believe(layout, WEAK, draw, pt)
        y = pm.Data("observed_log_loss", layout.log_loss, dims="row")
        weight = pm.Data("bought", np.ones(len(layout.row_curve)), dims="row")
        noise = pm.StudentT.dist(
            nu=belief.noise_df, mu=belief.mean, sigma=belief.noise[layout.row_curve]
        )
        pm.Potential("log_loss", (weight * pm.logp(noise, y)).sum())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Masked(nutpie.compile_pymc_model(model), layout, WEAK, pool)
